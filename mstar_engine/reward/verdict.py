"""What a judge says of a response, and the words in which it gives its reason."""

from __future__ import annotations

from dataclasses import dataclass

MATCH = "match"
MISMATCH = "mismatch"
NO_ANSWER = "no answer"
EMPTY = "empty answer"
TOO_LONG = "too long"
NOT_A_CHOICE = "not a choice"
CONTRADICTION = "letter and text disagree"
NOT_A_NUMBER = "not a number"
NOT_AN_INTEGER = "not an integer"
MORE_THAN_A_NUMBER = "more than a number"
MORE_THAN_A_FORMULA = "more than a formula"
NOT_A_LIST = "not a list"
UNREADABLE = "unreadable LaTeX"
TIMEOUT = "timeout"
CRASH = "comparison failed"
UNFINISHED = ("unfinished (length)", "unfinished (abort)")

REASONS = (
    MATCH, MISMATCH, NO_ANSWER, EMPTY, TOO_LONG, NOT_A_CHOICE, CONTRADICTION, NOT_A_NUMBER, NOT_AN_INTEGER,
    MORE_THAN_A_NUMBER, MORE_THAN_A_FORMULA, NOT_A_LIST, UNREADABLE, TIMEOUT, CRASH, *UNFINISHED,
)  # fmt: skip
"""Every reason there is; only `MATCH` is a right answer's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found: `answer` as the response gives it, None when it gives none; `reason` says why.

    `where` names the extraction rule that found the answer, None for exact match, which has only one.
    """

    correct: bool
    answer: str | None
    reason: str
    where: str | None = None
