"""Whole numbers: (reference answer, type, {reason: answers}). Written by hand; each answer is a case."""

from __future__ import annotations

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward.verdict import EMPTY, MATCH, MISMATCH, MORE_THAN_A_NUMBER, NOT_A_NUMBER, NOT_AN_INTEGER

PLAIN = AnswerType(kind="integer")
APPLES = AnswerType(kind="integer", units=("apples", "apple"))
DOLLARS = AnswerType(kind="integer", units=("$", "dollars"))
DEGREES = AnswerType(kind="integer", units=("°",))
PERCENT = AnswerType(kind="integer", units=("%",))
LENGTH = AnswerType(kind="integer", units=("m", "cm"))

CASES = [
    ("12", PLAIN, {
        MATCH: [
            "12", " 12 ", "12.", "12.0.", "+12", "+ 12", "012", "00012", "12.0", "12.00", "+12.000", "1.2e1", "1.2E1",
            "1.2e+1", "120e-1", "12e0", "0.12e2", "1.2 x 10^1", "1.2 × 10^1", "1.2 \\times 10^1",
            "1.2 \\times 10^{1}", "1.2 \\cdot 10^{1}", "1.2*10^1", "**12**", "*12*", "`12`", "$12$", "$$12$$",
            "\\(12\\)", "\\[12\\]", "\\boxed{12}", "\\text{12}", "$\\boxed{12}$", "$\\boxed{12}$.", "**12.**",
            "**12**.", "１２", "＋１２", "١٢", "۱۲", "१२", "১২", "１2", "12．", "\u200b12", "1\u200b2", "12\u200b",
            "\u200e12\u200f", "\u202b12\u202c", "\u206612\u2069", "\ufeff12", "12\u00a0", "\u300012", "12\n",
            "\t12\r\n", "1\u00ad2", "12 .",
        ],
        MISMATCH: [
            "13", "1", "2", "112", "121", "21", "-12", "−12", "–12", "- 12", "1200", "0", "-0", "1,200", "12,000",
            "1e3", "1e12", "12e1", "10", "11", "12345678901234567890", "9" * 300, "1e300", "－12", "٣",
            "\u202e21\u202c", "1.2e2",
        ],
        NOT_AN_INTEGER: [
            "12.5", "12.01", "11.9999999999", "0.12", ".12", "1.2", "-12.5", "12e-1", "1/2", "12/1", "24/2",
            "\\frac{24}{2}", "\\frac12", "½", "12½", "12 1/2", "12\\frac{1}{2}", "¼", "1e-3", "3 1/2", "12⅓",
        ],
        MORE_THAN_A_NUMBER: [
            "9e9e9", "1'200", "1’200", "1_2", "1e", "12 apples", "12apples", "12 cm", "12%", "12 %", "12°", "$12",
            "-$12", "€12", "12€", "12 and 13", "12 or 13", "12 to 13", "12 because", "12 (twelve)", "12!", "12?",
            "12;", "12 = 12", "12x", "12 x 1", "12 * 1", "12-13", "12 - 1", "12 is the answer", "12 I think", "12\\%",
            "12^\\circ", "12^1", "12²", "12 \\text{ cm}", "12dozen", "12e", "12e1e1", "12:30", "12_", "12'", '12"',
            "12th", "12 degrees", "12 dollars", "1,2,x", "0x0c", "12j", "12L", "12f", "£12", "12 **", "12 $", "1⃣2",
            "12\\", "12}", "12)", "12]", "１２個",
        ],
        NOT_A_NUMBER: [
            "apples 12", "twelve", "Twelve", "XII", "dozen", "x", "x = 12", "= 12", "~12", "≈12", "about 12",
            "nearly 12", "12 13", "12 12", "1 2", "1,2", "12,", "12,3", "1,0000", ",012", "12,00", "1,2345", "12..",
            "1.2.3", "12..0", "12/0", "12/", "/12", "--12", "+-12", "-+12", "++12", "-", "+", "e", "e1", "nan", "NaN",
            "inf", "-inf", "Infinity", "None", "none", "null", "answer: none", "true", "N/A", "?", "(12)", "[12]",
            "{12}", "'12'", '"12"', "#12", "No. 12", "n=12", "1e99999", "1e-99999", "1e401", "12,\n13", "12\n13",
            "12 / 0", "0/0", "\\frac{12}{0}", "\\frac{12}{", "\\frac{1}{2}{3}", "\\sqrt{144}", "\\infty", "∞",
            "1 200", "12 000", "一二", "十二", "Ⅻ", "⑫", "¹²", "₁₂", "a" * 4000, "1" * 401, "1" * 4000, "1," * 2000,
            "-" * 4000, "1 " * 2000, "(" * 4000, "\\frac{" * 500, "{" * 4000, "1/" * 2000, ".1" * 2000,
        ],
        EMPTY: ["", " ", ".", "...", "\n\n", "\u200b", "\u200f\u200e", "\u00a0"],
        "too long": ["1" * 5000, "12" + " " * 5000, "0" * 5000 + "12", "12" + "\u200b" * 5000],
    }),
    ("-7", PLAIN, {
        MATCH: ["-7", "−7", "–7", "－7", "‐7", "- 7", "-07", "-7.0", "-7.", "-0.7e1", "**-7**", "$-7$", "-٧", "−７"],
        MISMATCH: ["7", "+7", "-70", "-6", "0", "-77"],
        NOT_A_NUMBER: ["(7)", "minus 7", "--7", "negative 7", "—7", "~7", "(-7)"],
        NOT_AN_INTEGER: ["-7.5", "-7/1", "-0.7", "-7½"],
        MORE_THAN_A_NUMBER: ["7 -7", "7-", "-7-", "-7 °", "-7%"],
    }),
    ("0", PLAIN, {
        MATCH: ["0", "-0", "+0", "00", "0.0", "-0.0", "0e5", "0.", "−0", "０", "٠", "0,000"],
        MISMATCH: ["1", "-1", "10"],
        NOT_A_NUMBER: ["o", "O", "zero", "none", "null", "nil", "∅", "()"],
        NOT_AN_INTEGER: ["0.1", "0/1", "0/5", "1e-5", "↉"],
        MORE_THAN_A_NUMBER: ["0%", "0 apples", "$0"],
    }),
    ("1024", PLAIN, {
        MATCH: [
            "1,024", "1024", "+1,024", "01024", "1024.0", "1,024.0", "1.024e3", "1,024.", "１，０２４", "**1,024**",
            "$1,024$", "1٬024", "1.024 × 10^3",
        ],
        MISMATCH: ["1,025", "1,024,000", "102", "24", "1"],
        NOT_A_NUMBER: [
            "1, 024", "1024,000", "1,0,2,4", "10,24", "1,02,4", "1 024", "1024,", ",1024", "1,,024", "102,4",
        ],
        NOT_AN_INTEGER: ["1.024", "1024.5", "1,024.5"],
        MORE_THAN_A_NUMBER: ["0x400 1", "2^10", "1{,}024", "1;024", "1,024 bytes", "1024B", "1,024%"],
    }),
    ("1,024", PLAIN, {
        MATCH: ["1024", "1,024"],
        MISMATCH: ["1025"],
    }),
    ("+007", PLAIN, {
        MATCH: ["7", "07", "7.0"],
        MISMATCH: ["-7"],
    }),
    ("3.0", PLAIN, {
        MATCH: ["3", "3.0", "3.00"],
        MISMATCH: ["4"],
        NOT_AN_INTEGER: ["3.1"],
    }),
    ("3", PLAIN, {
        MATCH: ["3.0", "3", "3e0"],
        NOT_AN_INTEGER: ["6/2", "3.7", "2.9999", "9/3"],
        MORE_THAN_A_NUMBER: ["3D", "3rd", "3 of them"],
    }),
    ("1000", PLAIN, {
        MATCH: ["1e3", "1E3", "1,000", "1 x 10^3"],
        NOT_A_NUMBER: ["10 00"],
        MORE_THAN_A_NUMBER: ["1k 0", "1k", "10^3"],
    }),
    ("9" * 300, PLAIN, {
        MATCH: ["9" * 300, "0" + "9" * 300],
        MISMATCH: ["9" * 299, "9" * 299 + "8"],
    }),
    ("12", APPLES, {
        MATCH: [
            "12", "12 apples", "12apples", "12 apple", "12  apples", "12 apples.", "**12 apples**",
            "12 \\text{apples}", "12\\text{ apples}", "$12$ apples",
        ],
        MISMATCH: ["13 apples", "13"],
        MORE_THAN_A_NUMBER: [
            "12 13 apples", "12 pears", "12 Apples", "12 red apples", "12 apples each", "12 apples apples",
            "12 applesauce",
        ],
        NOT_A_NUMBER: ["apples", "apples 12", "twelve apples"],
        NOT_AN_INTEGER: ["12.5 apples", "1/2 apples"],
    }),
    ("1200", DOLLARS, {
        MATCH: [
            "$1,200", "$1200", "$ 1,200", "\\$1,200", "1,200 dollars", "1200$", "1,200", "$1,200.00", "**$1,200**",
            "$\\$1200$", "＄1,200",
        ],
        MISMATCH: ["-$1,200", "$1,201", "$12", "- $1200"],
        NOT_AN_INTEGER: ["$1,200.50", "$0.5"],
        MORE_THAN_A_NUMBER: ["€1,200", "1,200 euros", "$1,200 each", "£1,200", "$1.2k", "$1,200 dollars USD"],
        NOT_A_NUMBER: ["$$1,200", "$", "dollars", "$,1200", "USD 1,200"],
    }),
    ("45", DEGREES, {
        MATCH: [
            "45", "45°", "45 °", "45 degrees", "45 degree", "45 deg", "45^\\circ", "45^{\\circ}", "$45^\\circ$",
            "45\\degree", "45°.", "٤٥°",
        ],
        MISMATCH: ["46°", "-45°", "4°"],
        MORE_THAN_A_NUMBER: ["45 radians", "45%", "45°C", "45 ° C", "45º", "45 Degrees"],
        NOT_A_NUMBER: ["°", "degrees", "°45", "forty-five degrees"],
    }),
    ("50", PERCENT, {
        MATCH: ["50%", "50 %", "50", "50\\%", "50 percent", "50 per cent", "50％", "$50\\%$", "50.0%"],
        MISMATCH: ["5%", "500%"],
        NOT_AN_INTEGER: ["0.5", "0.5%", "1/2", "½%"],
        MORE_THAN_A_NUMBER: ["50‰", "50%%", "50 pc", "50 percents"],
        NOT_A_NUMBER: ["%", "%50", "percent"],
    }),
    ("5", LENGTH, {
        MATCH: ["5 m", "5m", "5 cm", "5", "5\\,\\text{m}", "5~m", "5 \\mathrm{m}", "5\\mathrm{ cm}"],
        MISMATCH: ["50 cm", "6 m", "-5 m"],
        MORE_THAN_A_NUMBER: ["5 mm", "5 M", "5 m m", "5 m²", "5 meters", "5 m/s", "5 m cm"],
        NOT_A_NUMBER: ["m 5", "m", "five m"],
    }),
]  # fmt: skip
