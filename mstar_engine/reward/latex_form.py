"""What a LaTeX answer may hold beside the formula that it is: nothing that the reference answer does not hold as well.

math-verify looks for a formula in what it is given, and is lenient: to it "5 apples", "5 \\text{ or } 6", "5\\%", "5|6"
and "5²" are 5. As a reward that is containment. So words, percent signs, line breaks, ellipses, approximations and
characters that it reads over must be those of the reference answer, and an equation's left side must be a name
("x = 5", "f(x) = 5") where the reference is none.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox)\s?\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-zA-Z]+\*?\}|\\[a-zA-Z]+")
_RUN = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp",
    "sqrt", "max", "min", "gcd", "lcm",
})  # fmt: skip
_NAME = re.compile(r"(?:[^\W\d_]|\\[a-zA-Z]+)(?:_(?:\w|\{\w+\}))?'?(?: ?\([^\W\d_](?:, ?[^\W\d_])*\))?")
_MARKS = (
    "%", ";", "\\\\", "\\approx", "\\sim", "\\ne", "\\ldots", "\\dots", "\\cdots", "\\pm", "\\lor", "\\vee", "\\land",
    "\\wedge", "\\quad", "\\qquad", "\u2248", "\u2260", "\u2026", "...", "\u00b1",
)  # fmt: skip
# What math-verify reads up to, or reads over: subscripts of numbers, signs between them, membership.
_STRAY = re.compile(r"[@#&']|[0-9] ?[~|] ?[0-9]|[0-9] ?_|\\\||\\(?:in|ni)(?![a-zA-Z])")
_SIGNS = frozenset("\u00d7\u00f7\u00b7\u22c5\u221a\u221e\u00b0\u2264\u2265\u222a\u2229")
# Letters that stand for constants and operators, whoever writes them.
_CONSTANTS = frozenset("eid")


def more_than_a_formula(answer: str, gold: str) -> bool:
    """Whether an answer holds anything beside a formula that the reference answer does not hold."""
    if any(mark in answer and mark not in gold for mark in _MARKS):
        return True
    # "50%" and "0.5" differ both ways: which is meant, only the reference answer says.
    if "%" in gold and "%" not in answer:
        return True
    if "=" in answer and "=" not in gold:
        name, _, answer = answer.partition("=")
        if "=" in answer or not _NAME.fullmatch(name.strip()):
            return True
    if any(stray[0] not in gold for stray in _STRAY.finditer(answer)):
        return True
    if any(not (one.isascii() or one.isalpha() or one in _SIGNS or one in gold) for one in answer):
        return True
    words, runs = _words(answer)
    known, letters = _words(gold)[0], frozenset(_COMMAND.sub(" ", gold)) | _CONSTANTS
    return not words <= known or any(run not in _FUNCTIONS and not letters.issuperset(run) for run in runs)


def _words(formula: str) -> tuple[frozenset[str], list[str]]:
    """What is written as text, word by word, and the runs of letters outside of it, commands aside."""
    texts = " ".join(_TEXT.findall(formula)).casefold().split()
    return frozenset(texts), _RUN.findall(_COMMAND.sub(" ", _TEXT.sub(" ", formula)))
