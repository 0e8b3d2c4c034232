"""Answers to choice questions: (reference answer, type, {reason: answers}). Written by hand; each answer is a case."""

from __future__ import annotations

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward.verdict import CONTRADICTION, EMPTY, MATCH, MISMATCH, NOT_A_CHOICE

LETTERS = AnswerType(kind="choice")
ANIMALS = AnswerType(kind="choice", choices=("a cat", "a dog", "a horse", "none of these"))
NUMBERS = AnswerType(kind="choice", choices=("12", "13", "1/2", "-7", "12 cm"))
POINTS = AnswerType(kind="choice", choices=("D", "A", "C", "B"), choice_by="text")
POINTS_BY_LETTER = AnswerType(kind="choice", choices=("D", "A", "C", "B"))
REPEATED = AnswerType(kind="choice", choices=("red", "blue", "Red", "green"))
YES_NO = AnswerType(kind="choice", choices=("yes", "no"))
MARKS = AnswerType(kind="choice", choices=("x > 2", "x < 2", "$x = 2$", "\\frac{1}{2}", "naïve", "½"))

CASES = [
    ("B", LETTERS, {
        MATCH: [
            "B", "b", "(B)", "(b)", "[B]", "[b]", "B.", "b.", "B)", "B:", "(B).", "(B):", "(B))", "[B].", " B ",
            "\tB\n", "**B**", "*B*", "__B__", "`B`", "$B$", "\\(B\\)", "\\[B\\]", "$$B$$", "\\boxed{B}",
            "\\text{B}", "\\mathrm{B}", "\\textbf{B}", "\\mathbf{B}", "**(B)**", "**B.**", "**B**.",
            "$\\boxed{B}$", "\\boxed{\\text{B}}", "option B", "Option B", "OPTION B", "Option (B)", "option [B]",
            "option B.", "choice B", "Choice (B)", "the option B", "The choice B", "an option B", "Ｂ", "ｂ", "（Ｂ）",
            "（B）", "Ｂ．", "\u200bB", "B\u200b", "\u200eB\u200f", "\ufeffB", "\u202aB\u202c", "\u2066B\u2069",
            "B\u00ad", "\u00a0B\u00a0", "\u3000B", "option\u00a0B", "B\r\n",
        ],
        MISMATCH: [
            "A", "a", "(A)", "C", "c.", "D)", "Option A", "the choice C", "Z", "**A**", "Ａ", "\u200bA",
            "\\boxed{C}",
        ],
        EMPTY: [
            "", " ", ".", "...", "\n", "\t", "\u200b", "\u200b\u200b", "\ufeff", "\u200e", "\u00a0", "\u3000",
            "..", ". ",
        ],
        NOT_A_CHOICE: [
            "B cat", "A cat", "BB", "AB", "A B", "A, B", "A and B", "A or B", "A/B", "(A)(B)", "(B)(B)",
            "(B) (B)", "B B", "B, B", "B.B", "B or not", "B?", "B!", "not B", "not (B)", "Not A", "maybe B",
            "I think B", "I think (A) but actually (C)", "it is B", "B it is", "B because",
            "B, because it is blue", "(B) cat", "B. cat", "B: the dog", "all", "none", "all of the above", "A-D",
            "A B C D", "ABCD", "1", "2", "(2)", "((B))", "{B}", "<B>", "'B'", '"B"', "(B", "B (", "[B)", "(B]",
            "-B", "+B", "B-", "B+", "B=", "=B", "B;", "#B", "B1", "1B", "option", "Option", "option BB",
            "option: B", "the B", "a B", "answer B", "answer: none", "Б", "В", "Β", "β", "ß", "é", "Ⓑ", "🅱",
            "Ｂ Ａ", "B\u0301", "ب", "٢", "**A** or **B**", "$A$ and $B$", "\\boxed{A} \\boxed{B}",
            "\\boxed{A}\\boxed{B}", "B\n\nA", "A\nB", "B\nbecause", "unknown", "N/A", "nan", "I cannot tell",
            "B" * 4096, "(" * 2000 + "B" + ")" * 2000, "option " * 500 + "B",
        ],
        "too long": ["B" + " " * 5000, "B" * 5000, "B " * 3000, "\u200b" * 5000 + "B"],
    }),
    ("b", LETTERS, {
        MATCH: ["B", "b", "(B)"],
        MISMATCH: ["A", "d"],
        NOT_A_CHOICE: ["8", "6"],
    }),
    ("(C).", LETTERS, {
        MATCH: ["C", "c", "(C)", "C."],
        MISMATCH: ["B", "(D)"],
    }),
    ("A", LETTERS, {
        MATCH: ["A", "a", "(A)", "A.", "Option A"],
        MISMATCH: ["B", "I", "O"],
        NOT_A_CHOICE: ["A cat", "a dog", "A.cat", "An A", "a a", "A A", "A-", "A+", "an answer", "A I", "ａ ｂ"],
    }),
    ("B", ANIMALS, {
        MATCH: [
            "B", "b", "(B)", "a dog", "A dog", "A DOG", "a  dog", " a dog ", "a dog.", "a\tdog", "a\ndog",
            "a\u00a0dog", "**a dog**", "\\text{a dog}", "B. a dog", "B: a dog", "B) a dog", "(B) a dog",
            "(b) A dog", "[B] a dog", "(B). a dog", "(B): a dog", "B.a dog", "(B)a dog", "(B) a dog.",
            "**(B) a dog**", "b. a dog", "a\u200b dog", "\u200ea dog", "ａ ｄｏｇ", "option B",
        ],
        MISMATCH: [
            "A", "a", "a cat", "A cat", "(A) a cat", "C. a horse", "none of these", "None of these.", "D",
            "d) none of these", "NONE OF THESE",
        ],
        CONTRADICTION: [
            "B. a cat", "(B) a horse", "A. a dog", "(A) a dog", "C: a dog", "[D] a dog", "B) none of these",
            "(b) A CAT",
        ],
        NOT_A_CHOICE: [
            "E", "(E)", "Z", "dog", "the dog", "dogs", "a dogs", "a dog!", "a dog?", "a dog and a cat",
            "a dog or a cat", "a dog, a cat", "B a dog", "B - a dog", "B. dog", "B. the dog",
            "B. a dog and a cat", "(B) a dog (A) a cat", "(E) a dog", "not a dog", "it is a dog", "a dog because",
            "a big dog", "a d0g", "adog", "a-dog", "A or B", "B, a dog", "I think it is a dog", "none",
            "of these", "None of the above", "a cat a dog", "the horse", "a dog\n(B)", "(B)\n(A)", "а dog",
            "a dοg", "Q. a dog", "hot dog", "a dog's", "B. B. a dog", "((B) a dog)",
        ],
        EMPTY: ["", ".", "\u200b"],
    }),
    ("a dog", ANIMALS, {
        MATCH: ["B", "(B) a dog", "a dog"],
        MISMATCH: ["A", "a cat"],
        NOT_A_CHOICE: ["dog"],
    }),
    ("None of these.", ANIMALS, {
        MATCH: ["D", "(d)", "none of these"],
        MISMATCH: ["a cat"],
        NOT_A_CHOICE: ["none"],
    }),
    ("13", NUMBERS, {
        MATCH: ["13", "B", "(B)", "(B) 13", "B. 13", "13.", "１３", "١٣", "**13**", "$13$", "\\boxed{13}"],
        MISMATCH: ["12", "A", "1/2", "C", "-7", "−7", "–7", "12 cm", "E", "E. 12 cm", "12."],
        CONTRADICTION: ["B. 12", "(A) 13", "C) 13", "(B) -7"],
        NOT_A_CHOICE: [
            "13.0", "+13", "013", "13 cm", "0.5", "1 3", "2", "thirteen", "12 or 13", "12, 13", "7", "(F)", "1⁄3",
            "½", "13%",
        ],
    }),
    ("E", NUMBERS, {
        MATCH: ["12 cm", "E", "12  cm", "12 CM"],
        MISMATCH: ["12", "A"],
        NOT_A_CHOICE: ["12cm", "12 centimetres"],
    }),
    ("A", POINTS, {
        MATCH: ["A", "(B) A", "B. A", "a", "A.", "**A**"],
        MISMATCH: ["B", "C", "D", "(D) B", "(C) C", "b", "(A)", "[A]", "option A"],
        CONTRADICTION: ["(A) A", "A. A", "(C) A", "(D) A"],
        NOT_A_CHOICE: ["E", "A B", "point A"],
    }),
    ("A", POINTS_BY_LETTER, {
        MATCH: ["A", "(A)", "A. D", "(A) D", "a"],
        MISMATCH: ["D", "B", "(D) B", "C. C"],
        CONTRADICTION: ["A. A", "(A) B"],
        NOT_A_CHOICE: ["E", "AD"],
    }),
    ("A", REPEATED, {
        MATCH: ["red", "RED", "A", "C", "(C)", "(C) red", "A. Red", "c. RED"],
        MISMATCH: ["B", "blue", "D", "green", "(D) green"],
        CONTRADICTION: ["B. red", "(C) blue", "D) Red"],
        NOT_A_CHOICE: ["reds", "red blue", "dark red", "redd", "E"],
    }),
    ("C", REPEATED, {
        MATCH: ["A", "C", "red", "Red"],
        MISMATCH: ["blue", "B"],
    }),
    ("yes", YES_NO, {
        MATCH: ["yes", "Yes", "YES.", "A", "(A) yes", "**Yes**", "Ｙｅｓ"],
        MISMATCH: ["no", "No.", "B", "(B) NO"],
        CONTRADICTION: ["A. no", "(B) yes"],
        NOT_A_CHOICE: [
            "yes no", "yes and no", "yes, it is", "Yes!", "y", "n", "C", "true", "yess", "not yes", "ja", "none",
        ],
    }),
    ("C", MARKS, {
        MATCH: ["C", "x = 2", "$x = 2$", "\\(x = 2\\)", "(C) x = 2", "X = 2", "x  =  2"],
        MISMATCH: ["x > 2", "x < 2", "A", "\\frac{1}{2}", "$\\frac{1}{2}$", "naïve", "nai\u0308ve", "½", "F"],
        NOT_A_CHOICE: ["x=2", "x == 2", "2 = x", "naive", "1/2", "\\frac12", "x", "2", "x ≥ 2", "x > 2 or x < 2"],
    }),
]  # fmt: skip
