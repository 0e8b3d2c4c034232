"""Texts and lists: (reference answer, type, {reason: answers}). Written by hand; each answer is a case."""

from __future__ import annotations

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward.verdict import (
    EMPTY,
    MATCH,
    MISMATCH,
    MORE_THAN_A_NUMBER,
    NOT_A_LIST,
    NOT_A_NUMBER,
    NOT_AN_INTEGER,
)

TEXT = AnswerType(kind="text")
CASED = AnswerType(kind="text", ignore_case=False)
WORDS = AnswerType(kind="list")
WORD_SET = AnswerType(kind="list", ordered=False)
CASED_WORDS = AnswerType(kind="list", ignore_case=False)
INTEGERS = AnswerType(kind="list", items="integer")
INTEGER_SET = AnswerType(kind="list", items="integer", ordered=False)
FLOATS = AnswerType(kind="list", items="float", precision=1)

CASES = [
    ("red square", TEXT, {
        MATCH: [
            "red square", "Red Square", "RED SQUARE", "red square.", " red square ", "red  square", "red\tsquare",
            "red\nsquare", "red\u00a0square", "red\u3000square", "red\u2003square", "**red square**", "*Red square*",
            "__red square__", "`red square`", "$red square$", "\\text{red square}", "\\boxed{red square}",
            "\\boxed{\\text{Red square}}", "$\\boxed{\\text{red square}}$.", "**red square.**", "**Red square**.",
            "ｒｅｄ ｓｑｕａｒｅ", "\u200bred square", "re\u200bd square", "red square\u200e", "\ufeffred square",
            "r\u00aded square", "\u202ared square\u202c", "red square\r\n", "\\mathrm{red square}", "red square .",
        ],
        MISMATCH: [
            "red", "square", "a red square", "the red square", "red square!", "red square?", "red squares",
            "redsquare", "red-square", "red, square", "square red", "red square red square",
            "red square and blue circle", "red or square", "not red square", "blue square", "red circle",
            "red square,", "red square;", "'red square'", '"red square"', "(red square)", "[red square]",
            "red square (I think)", "it is red square", "red squ are", "r e d square", "reed square", "red sqare",
            "rot square", "rеd square", "red ѕquare", "réd square", "red square..", "..red square", "-red square",
            "red square 1", "none", "None", "answer: none", "unknown", "N/A", "null", "yes", "red_square",
            "red/square", "red & square", "red square is the answer", "**red** square", "red square*", "red square\\",
            "{red square}", "red square}", "ⓡed square", "🟥", "red square 🟥", "red square" * 2,
            "red " * 1000 + "square", "red square\nblue square", "blue square\nred square",
            "RED SQUARE OR BLUE SQUARE", "1", "12", "a" * 4000, "(" * 4000, "* " * 2000, "$" * 4001 + "$",
            "\\text{" * 600, "{" * 4000, "\\boxed{" * 500, "**" * 2000,
        ],
        EMPTY: ["", " ", ".", "...", "\n", "\u200b", "\u200b \u200e", "\u00a0", " ..", "\ufeff."],
        "too long": ["red square" + " " * 5000, "red square" * 1000, "\u200b" * 5000],
    }),
    ("Paris.", TEXT, {
        MATCH: ["Paris", "paris", "PARIS."],
        MISMATCH: ["Paris, France", "paris!", "parís", "in Paris"],
    }),
    ("U.S.", TEXT, {
        MATCH: ["U.S.", "u.s.", "U.S"],
        MISMATCH: ["US", "U S", "USA", "U.S.A."],
    }),
    ("naïve café", TEXT, {
        MATCH: ["naïve café", "nai\u0308ve cafe\u0301", "NAÏVE CAFÉ", "Naïve  Café."],
        MISMATCH: ["naive cafe", "naïve cafe", "naïve"],
    }),
    ("straße", TEXT, {
        MATCH: ["straße", "STRASSE", "strasse", "Straße"],
        MISMATCH: ["strase", "straße 1"],
    }),
    ("12", TEXT, {
        MATCH: ["12", "12.", "１２", "١٢", "$12$"],
        MISMATCH: ["+12", "012", "12.0", "12 apples", "1 2", "twelve", "1,2", "-12", "1e1"],
    }),
    ("-5 °C", TEXT, {
        MATCH: ["-5 °C", "−5 °c", "–5 °C"],
        MISMATCH: ["-5°C", "5 °C", "-5", "-5 ° C", "-5 C"],
    }),
    ("none", TEXT, {
        MATCH: ["none", "None", "NONE."],
        MISMATCH: ["none of them", "no", "null", "nothing"],
        EMPTY: ["", "."],
    }),
    ("x", TEXT, {
        MATCH: ["x", "X", "$x$", "x."],
        MISMATCH: ["xx", "y", "×", "х", "x y", "x = 1"],
    }),
    ("A*b_c", TEXT, {
        MATCH: ["A*b_c", "a*B_C"],
        MISMATCH: ["A b c", "Ab_c", "*A*b_c"],
    }),
    ("مرحبا", TEXT, {
        MATCH: ["مرحبا", "\u202bمرحبا\u202c", "\u200fمرحبا"],
        MISMATCH: ["ابحرم", "مرحب", "مرحبا بك"],
    }),
    ("红色", TEXT, {
        MATCH: ["红色", " 红色 ", "**红色**"],
        MISMATCH: ["红 色", "紅色", "红", "红色。"],
    }),
    ("Red", CASED, {
        MATCH: ["Red", "Red.", " Red ", "**Red**", "Ｒed"],
        MISMATCH: ["red", "RED", "rEd", "Red one"],
        EMPTY: ["", ".", "\u200b"],
    }),
    ("pH", CASED, {
        MATCH: ["pH", "pH."],
        MISMATCH: ["PH", "ph", "Ph", "p H"],
    }),
    ("red, blue", WORDS, {
        MATCH: [
            "red, blue", "red,blue", "Red, Blue", "[red, blue]", "(red, blue)", "{red, blue}", "\\{red, blue\\}",
            "['red', 'blue']", '["red", "blue"]', "red; blue", "[red; blue]", "red , blue", " red,  blue ",
            "red, blue.", "**red, blue**", "$[red, blue]$", "[ red, blue ]", "'red', \"blue\"", "\\boxed{red, blue}",
            "**red**, **blue**", "$red$, $blue$", "red,\nblue", "[RED, BLUE].", "\u200bred, blue", "red，blue",
            "red；blue",
        ],
        MISMATCH: [
            "blue, red", "red", "blue", "red blue", "red and blue", "red, and blue", "red & blue", "red/blue",
            "red, blue, green", "red, red", "red, blue, blue", "red | blue", "red - blue", "red, a blue",
            "red, blues", "[red], [blue]", "[[red, blue]]", "red\nblue", "(red), (blue)", "the colours red, blue",
            "red, blue and green", "red, blue, red", "none", "'red, blue'", "1. red, 2. blue", "red, blue or green",
            "red; blue; green", "red, blue; green",
        ],
        NOT_A_LIST: [
            "red,", ",red, blue", "red,, blue", "red, blue,", ",", ",,", "[,]", "red; blue;", ";", "red, .",
            "[red, blue, ]", "red, ''", "," * 4000,
        ],
        EMPTY: ["", ".", "[]", "()", "{}", "[ ]", "['']", "\u200b", "[.]"],
        "too long": ["red, " * 1000 + "blue", "red, blue" + " " * 5000],
    }),
    ("['Alice', 'Bob']", WORDS, {
        MATCH: ["Alice, Bob", "[Alice, Bob]", "alice,bob", "['Alice','Bob']"],
        MISMATCH: ["Bob, Alice", "Alice Bob", "Alice"],
    }),
    ("a, b; c", WORDS, {
        MATCH: ["a, b; c", "[a, b; c]", "A, b ;C"],
        MISMATCH: ["a; b; c", "a, b, c", "c; a, b"],
    }),
    ("red", WORDS, {
        MATCH: ["red", "[red]", "Red.", "('red')"],
        MISMATCH: ["red, red", "blue", "red, blue", "red one"],
        NOT_A_LIST: ["red,"],
    }),
    ("red, blue, red", WORD_SET, {
        MATCH: ["red, blue, red", "blue, red, red", "red, red, blue", "[RED, Blue, red]", "red; red; blue"],
        MISMATCH: ["red, blue", "red, blue, blue", "red", "red, blue, red, red", "red, blue, green", "red red blue"],
        NOT_A_LIST: ["red, blue, red,"],
    }),
    ("Red, blue", CASED_WORDS, {
        MATCH: ["Red, blue", "[Red,blue]"],
        MISMATCH: ["red, blue", "Red, Blue", "blue, Red"],
    }),
    ("1, 2, 3", INTEGERS, {
        MATCH: [
            "1, 2, 3", "1,2,3", "[1, 2, 3]", "(1, 2, 3)", "{1,2,3}", "1; 2; 3", "[1,2,3].", "01, 2.0, +3",
            "$1, 2, 3$", "\\{1, 2, 3\\}", "['1', '2', '3']", "１，２，３", "١, ٢, ٣", "1,  2,\n3", "**1, 2, 3**",
            "[1e0, 2, 3]", "$1$, $2$, $3$",
        ],
        MISMATCH: ["3, 2, 1", "1, 2", "1, 2, 3, 4", "1, 2, 4", "-1, 2, 3", "123", "1, 1, 2, 3", "[1,2,-3]", "1; 23"],
        NOT_A_NUMBER: [
            "1 2 3", "1, 2 3", "one, two, three", "[[1, 2, 3]]", "1; 2, 3", "1, nan, 3", "1, 2, inf", "a, 2, 3",
            "1, two, 3", "(1), (2), (3)",
        ],
        MORE_THAN_A_NUMBER: ["1, 2, 3 apples", "1, 2 and 3", "1, 2, 3!", "1-3", "1, 2, 3)", "1%, 2, 3", "1…3"],
        NOT_AN_INTEGER: ["1, 2, 3.5", "1/1, 2, 3", "1.5, 2, 3", "1, ½, 3"],
        NOT_A_LIST: ["1, 2, 3,", "1,, 2, 3", ",1,2,3", "1, , 3", "," * 3000],
        EMPTY: ["", "[]", "."],
    }),
    ("[2007, 2008]", INTEGERS, {
        MATCH: ["2007, 2008", "[2007,2008]", "2007; 2008"],
        MISMATCH: ["2008, 2007", "2007", "2007, 2009"],
        NOT_A_NUMBER: ["between 2007, 2008"],
        MORE_THAN_A_NUMBER: ["2007 and 2008", "2007-2008", "2007–2008", "2007 to 2008"],
    }),
    ("1, 2, 2", INTEGER_SET, {
        MATCH: ["2, 1, 2", "2,2,1", "[1, 2, 2]", "{2; 2; 1}", "2.0, 1, 02"],
        MISMATCH: ["1, 2", "1, 1, 2", "2, 2", "1, 2, 2, 2"],
        NOT_A_NUMBER: ["1 2 2"],
    }),
    ("1,000; 2,000", INTEGERS, {
        MATCH: ["1000, 2000", "1,000; 2,000", "[1000; 2,000]"],
        MISMATCH: ["1,000, 2,000", "1, 0, 2, 0", "2000, 1000"],
    }),
    ("0.5, 1.25", FLOATS, {
        MATCH: [
            "0.5, 1.25", "1/2, 1.3", "[0.5, 1 1/4]", "½; 1¼", "0.46, 1.34", ".5,1.3", "\\frac{1}{2}, 1.3",
            "(0.5, 1.25)",
        ],
        MISMATCH: ["1.25, 0.5", "0.5", "0.5, 1.2", "0.6, 1.3", "0.5, 1.3, 2", "-0.5, 1.3", "0.5, 1.249"],
        NOT_A_NUMBER: ["0.5 1.25", "half, 1.25", "0.5, nan", "0.5, inf", "x, y"],
        MORE_THAN_A_NUMBER: ["50%, 125%", "0.5 m, 1.25 m", "0.5, 1.25 (both)"],
        NOT_A_LIST: ["0.5,, 1.25", "0.5, 1.25,"],
    }),
]  # fmt: skip
