"""LaTeX: (reference answer, type, {reason: answers}). Written by hand; each answer is a case that math-verify decides,
unless it is spelled as the reference answer is or could hold several answers."""

from __future__ import annotations

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward.verdict import EMPTY, MATCH, MISMATCH, MORE_THAN_A_FORMULA, UNREADABLE

LATEX = AnswerType(kind="latex")

CASES = [
    ("\\frac{1}{2}", LATEX, {
        MATCH: [
            "\\frac{1}{2}", "$\\frac{1}{2}$", "\\(\\frac{1}{2}\\)", "\\[\\frac{1}{2}\\]", "\\boxed{\\frac{1}{2}}",
            "$\\boxed{\\frac{1}{2}}$.", "\\dfrac{1}{2}", "\\tfrac{1}{2}", "\\frac12", "\\frac{2}{4}", "0.5", ".5",
            "1/2", "\\frac{50}{100}", "2^{-1}", "1 - \\frac{1}{2}", "\\frac{-1}{-2}", "**\\frac{1}{2}**",
            "\\frac{1}{2}.", " \\frac{1}{2} ", "\\frac{\\sqrt{4}}{4}", "\\sin(\\frac{\\pi}{6})",
            "\\left(\\frac{1}{2}\\right)",
        ],
        MISMATCH: [
            "\\frac{1}{3}", "-\\frac{1}{2}", "\\frac{-1}{2}", "2", "\\frac{2}{1}", "1", "0", "5", "0.51", "0.49",
            "x", "\\frac{x}{2}", "\\frac{1}{2}x", "\\sqrt{2}", "\\frac{1}{2}\\pi", "1\\frac{1}{2}",
            "\\frac{1}{2} + 1", "\\{\\frac{1}{2}, 1\\}", "(\\frac{1}{2}, 1)", "\\infty", "\\pi", "\\frac{1}{20}",
            "0.5 + i", "2^{1}",
        ],
        UNREADABLE: [
            "$\\frac{1}{2}$ or $1$", "\\frac{1}{2}$, $2", "\\boxed{1} \\boxed{\\frac{1}{2}}", "\\(1\\) \\(2\\)",
            "\\[1\\]\\[\\frac{1}{2}\\]", "$1$ and \\frac{1}{2}",
        ],
        EMPTY: ["", ".", "\u200b", "..."],
        "too long": ["\\frac{1}{2}" + " " * 5000, "1+" * 3000],
    }),
    ("\\sqrt{2}", LATEX, {
        MATCH: [
            "\\sqrt{2}", "\\sqrt2", "2^{1/2}", "2^{\\frac{1}{2}}", "\\frac{2}{\\sqrt{2}}", "\\sqrt{8}/2",
            "\\frac{\\sqrt{8}}{2}", "\\sqrt{1+1}", "$\\sqrt{2}$",
        ],
        MISMATCH: [
            "2", "\\sqrt{3}", "-\\sqrt{2}", "\\sqrt[3]{2}", "\\frac{1}{\\sqrt{2}}", "2\\sqrt{2}", "1.4", "1.41",
            "\\sqrt{-2}", "\\sqrt{2}i", "\\sqrt{x}", "2^2",
        ],
    }),
    ("x^2+2x+1", LATEX, {
        MATCH: [
            "x^2+2x+1", "x^2 + 2x + 1", "(x+1)^2", "1+2x+x^2", "x(x+2)+1", "(1+x)(x+1)", "x^{2}+2x+1", "2x+x^2+1",
            "\\left(x+1\\right)^2", "x^2+x+x+1", "x\\cdot x+2\\cdot x+1",
        ],
        MISMATCH: [
            "x^2+2x", "x^2-2x+1", "(x-1)^2", "x^2+1", "y^2+2y+1", "x+1", "2x^2+2x+1", "x^3+2x+1", "(x+1)^3",
            "x^2+2x+2", "1", "x", "x^2",
        ],
    }),
    ("12", LATEX, {
        MATCH: [
            "12", "12.0", "3\\cdot 4", "3 \\times 4", "\\frac{24}{2}", "\\sqrt{144}", "2^2 \\cdot 3", "+12",
            "10+2", "4!/2", "$12$", "\\text{12}", "12.",
        ],
        MISMATCH: [
            "13", "1", "2", "-12", "1.2", "120", "\\frac{1}{12}", "12^2", "12x", "12+1", "\\{12, 13\\}",
            "(12, 13)", "11.99", "12, 13", "12!",
        ],
        UNREADABLE: ["$12$, $13$", "12$ $13", "\\boxed{12}\\boxed{13}"],
    }),
    ("\\pi", LATEX, {
        MATCH: [
            "\\pi", "$\\pi$", "\\frac{2\\pi}{2}", "2\\pi - \\pi", "\\pi^1", "1\\pi", "\\frac{\\pi}{1}",
            "\\pi\\cdot 1",
        ],
        MISMATCH: [
            "2\\pi", "\\frac{\\pi}{2}", "-\\pi", "3", "\\pi^2", "e", "\\theta", "3.2", "180", "\\pi + 1",
            "\\frac{22}{7}", "i\\pi",
        ],
    }),
    ("\\{1, 2, 3\\}", LATEX, {
        MATCH: [
            "\\{1, 2, 3\\}", "\\{3, 2, 1\\}", "\\{1,2,3\\}", "\\left\\{1, 2, 3\\right\\}", "\\{2, 1, 3\\}",
            "\\{\\frac{2}{2}, 2, 3\\}",
        ],
        MISMATCH: [
            "\\{1, 2\\}", "\\{1, 2, 4\\}", "\\{1, 2, 3, 4\\}", "1", "\\{-1, 2, 3\\}", "6", "\\emptyset",
            "\\{1\\}", "123",
        ],
    }),
    ("(1, 2)", LATEX, {
        MATCH: ["(1, 2)", "(1,2)", "\\left(1, 2\\right)", "(\\frac{2}{2}, 2)", "(1.0, 2)"],
        MISMATCH: ["(2, 1)", "(1, 3)", "(1, 2, 3)", "1", "2", "[1, 2]", "(-1, 2)", "12", "(0, 2)"],
    }),
    ("[0, 1)", LATEX, {
        MATCH: ["[0, 1)", "[0,1)", "\\left[0, 1\\right)", "[\\frac{0}{2}, 1)"],
        MISMATCH: ["[0, 1]", "(0, 1)", "(0, 1]", "[0, 2)", "[1, 0)", "0", "[-1, 1)", "[0, \\infty)"],
    }),
    ("x = 5", LATEX, {
        MATCH: ["x = 5", "x=5", "5", "x = \\frac{10}{2}", "$x = 5$", "x = 5.0"],
        MISMATCH: ["x = 6", "x = -5", "6", "x = 5x", "x = 50", "x", "-5"],
    }),
    ("x > 2", LATEX, {
        MATCH: ["x > 2", "x>2", "2 < x", "x > \\frac{4}{2}"],
        MISMATCH: ["x < 2", "x \\geq 2", "x > 3", "2", "x = 2", "x \\leq 2", "x > -2", "2 > x"],
    }),
    ("3 + 4i", LATEX, {
        MATCH: ["3 + 4i", "3+4i", "4i + 3", "$3+4i$"],
        MISMATCH: ["3 - 4i", "4 + 3i", "3", "4i", "5", "-3 + 4i", "3 + 4", "7", "7i", "-3-4i"],
    }),
    ("\\frac{a}{b}", LATEX, {
        MATCH: ["\\frac{a}{b}", "a/b", "a b^{-1}", "\\frac{2a}{2b}", "a \\cdot \\frac{1}{b}", "\\dfrac{a}{b}"],
        MISMATCH: [
            "\\frac{b}{a}", "ab", "a", "b", "a - b", "\\frac{a}{c}", "\\frac{A}{b}x", "\\frac{a}{b^2}",
            "\\frac{-a}{b}",
        ],
    }),
    ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", LATEX, {
        MATCH: [
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}",
        ],
        MISMATCH: [
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 5 \\end{pmatrix}",
            "\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}", "1", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}",
            "-2",
        ],
    }),
    ("50\\%", LATEX, {
        MATCH: ["50\\%", "50%", "$50\\%$"],
        MISMATCH: ["5\\%", "500\\%", "-50\\%"],
        MORE_THAN_A_FORMULA: ["0.5", "0.05", "50"],
    }),
    ("e^x", LATEX, {
        MATCH: ["e^x", "e^{x}", "\\exp(x)", "e^{2x-x}", "\\frac{e^{2x}}{e^{x}}"],
        MISMATCH: ["e^{-x}", "e", "x", "ex", "e^{2x}", "10^x", "\\ln x", "e^y", "-e^x"],
    }),
    ("\\ln 2", LATEX, {
        MATCH: ["\\ln 2", "\\ln(2)", "\\ln{2}", "\\frac{\\ln 4}{2}", "-\\ln\\frac{1}{2}"],
        MISMATCH: ["\\ln 3", "2", "\\ln 4", "-\\ln 2", "\\log_2 3", "e^2", "0.7", "\\ln x"],
    }),
    ("\\sin x", LATEX, {
        MATCH: ["\\sin x", "\\sin(x)", "\\sin{x}", "\\cos(\\frac{\\pi}{2}-x)"],
        MISMATCH: ["\\cos x", "\\sin y", "-\\sin x", "\\sin 2x", "x", "\\sin^2 x", "\\tan x", "1"],
    }),
    ("1,024", LATEX, {
        MATCH: ["1,024", "1024", "2^{10}", "1{,}024"],
        MISMATCH: ["1", "24", "1.024", "1025", "10240"],
    }),
    ("-\\frac{3}{4}", LATEX, {
        MATCH: ["-\\frac{3}{4}", "\\frac{-3}{4}", "\\frac{3}{-4}", "-0.75", "-3/4", "−0.75", "-\\frac{6}{8}"],
        MISMATCH: ["\\frac{3}{4}", "-\\frac{4}{3}", "0.75", "-3", "-\\frac{3}{5}", "-0.7"],
    }),
    ("45^\\circ", LATEX, {
        MATCH: ["45^\\circ", "45^{\\circ}", "45°", "45"],
        MISMATCH: ["46^\\circ", "-45^\\circ", "450", "4.5"],
    }),
    ("5", LATEX, {
        MATCH: [
            "5", "5.0", "x = 5", "y=5", "f(x) = 5", "x_1 = 5", "\\theta = 5", "-5 + 10", "(5)", "5,", "\\text{5}",
            "|5|",
        ],
        MISMATCH: [
            "6", "x = 6", "5, 6", "[5, 6]", "5 6", "5!", "x > 5", "55", "5 \\cup 6", "1,2,3,4,5", "5e0", "x",
            "25x",
        ],
        MORE_THAN_A_FORMULA: [
            "5 apples", "5 or 6", "5 and 6", "none", "answer 5", "the answer is 5", "5 \\text{ or } 6",
            "5 \\text{ cm}", "5\\text{(or 6)}", "\\text{answer } 5", "5 \\mathrm{cm}", "\\text{5 or 6}", "6 = 5",
            "5 = 6", "5 = 5", "x = 6 = 5", "x = 5, x = 6", "2x = 5", "5%", "500\\%", "5\\\\6", "5 \\approx 5.1",
            "5 \\neq 6", "5 \\pm 1", "\\pm 5", "5 \\lor 6", "5 \\quad 6", "5; 6", "5\\ldots", "5...", "5…", "≈ 5",
            "a5 = 5", "x \\in \\{5\\} \\text{ or } \\{6\\}",
        ],
    }),
    ("1, 2", LATEX, {
        MATCH: ["1, 2", "2, 1", "\\{1, 2\\}", "$1, 2$", "1,2"],
        MISMATCH: ["1", "2", "12", "1, 2, 3", "[1, 2]", "1, 3"],
        MORE_THAN_A_FORMULA: ["x = 1, x = 2", "1 and 2", "1 \\text{ and } 2", "1; 2"],
        UNREADABLE: ["$1$, $2$"],
    }),
    ("5", LATEX, {
        MATCH: ["|-5|", "f'(x) = 5", "10/2", "\\sqrt{25}", "5 \u00d7 1", "\u0665"],
        MISMATCH: ["5 \u00d7 6", "|6|", "25", "5^2"],
        MORE_THAN_A_FORMULA: [
            "5|6", "5 | 6", "5~6", "5@6", "5#6", "5&6", "5_6", "5_{6}", "5'", "5\u00b2", "5\u0336", "5\u2465", "5\\|6",
            "5 \\in \\{5, 6\\}", "x \\in \\{5\\}",
        ],
    }),
    ("x \\in [0, 1]", LATEX, {
        MATCH: ["x \\in [0, 1]", "[0, 1]"],
    }),
    ("3x_2", LATEX, {
        MATCH: ["3x_2", "3 x_2", "x_2 \\cdot 3"],
        MISMATCH: ["3x_1", "3x"],
    }),
    ("5 \\text{ cm}", LATEX, {
        MATCH: ["5 \\text{ cm}", "5\\text{cm}", "5 \\mathrm{cm}", "x = 5 \\text{ cm}"],
        MISMATCH: ["6 \\text{ cm}", "50 \\text{ cm}"],
        MORE_THAN_A_FORMULA: ["5 \\text{ m}", "5 \\text{ cm or so}", "5 cm long"],
    }),
]  # fmt: skip
