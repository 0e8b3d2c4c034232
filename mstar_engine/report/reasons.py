"""Why a response is selected or not, told from what a run wrote: reward/select.py read backwards, and for a wrong one
the reason of its verdict.

The rules go in the order in which the selection applies them. A row that they do not explain is said to be not kept,
without a reason: a wrong reason is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KEPT, SAME_TEXT, OUTSCORED, BELOW = "kept", "same text", "outscored", "below the threshold"
NOT_DRAWN, WRONG, UNFINISHED, NOT_JUDGED, NOT_KEPT = "not drawn", "wrong", "unfinished", "not judged", "not kept"

_SHOWN = 60  # characters of an answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the reason depends on, of one response: as its row has it; `tokens` is its length, `verdict` the reason of
    its verdict, None in runs of earlier versions."""

    text: str
    correct: bool | None
    selected: bool
    score: float | None
    tokens: int
    finish_reason: str
    answer: str | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """`kind` is one of the constants above; `words` say more, "" when the kind says all."""

    kind: str
    words: str = ""


def reasons(outcomes: Sequence[Outcome], select: dict[str, Any]) -> list[Reason]:
    """The reason of each response to one problem, under the configuration's section `select`."""
    kept = [one for one in outcomes if one.selected]
    return [_reason(one, kept, select) for one in outcomes]


def _reason(one: Outcome, kept: list[Outcome], select: dict[str, Any]) -> Reason:
    if one.selected:
        return Reason(KEPT)
    if one.correct is None:
        return Reason(NOT_JUDGED)
    if not one.correct:
        if one.finish_reason != "stop":
            return Reason(UNFINISHED, "it did not come to an end")
        return Reason(WRONG, _said(one))
    kind, k, alpha = select.get("kind"), select.get("k"), select.get("alpha")
    if alpha is not None and not (_scored(one) and one.score > alpha):
        if not _scored(one):
            return Reason(NOT_KEPT)
        return Reason(BELOW, f"{one.score:.2f} is not above {alpha:g}")
    if one.text.strip() in {other.text.strip() for other in kept}:
        return Reason(SAME_TEXT, "as a kept one")
    if not isinstance(k, int) or len(kept) < k:
        return Reason(NOT_KEPT)
    if kind == "random":
        return Reason(NOT_DRAWN, f"{k} were drawn")
    if kind == "top_k" and _scored(one) and all(map(_scored, kept)):
        return _outscored(one, kept, k)
    return Reason(NOT_KEPT)


def _said(one: Outcome) -> str:
    """Why an answer is wrong, and what it is."""
    answer = " ".join((one.answer or "").split())
    answer = answer if len(answer) <= _SHOWN else answer[: _SHOWN - 3] + "..."
    return f"{one.verdict}: {answer}" if one.verdict and answer else one.verdict or ""


def _outscored(one: Outcome, kept: list[Outcome], k: int) -> Reason:
    # The selection ranks by score, then by fewer tokens, then by lot.
    last = min(kept, key=lambda other: (other.score, -other.tokens))
    best = "the best" if k == 1 else f"the {k} best"
    if one.score < last.score:
        digits = next((d for d in (2, 3, 4) if f"{one.score:.{d}f}" != f"{last.score:.{d}f}"), 5)
        return Reason(OUTSCORED, f"{one.score:.{digits}f}, below {best} (lowest kept {last.score:.{digits}f})")
    if one.score > last.score or one.tokens < last.tokens:
        return Reason(NOT_KEPT)
    if one.tokens > last.tokens:
        return Reason(OUTSCORED, f"{one.score:.2f} like the lowest kept, and longer")
    return Reason(OUTSCORED, f"{one.score:.2f} like the lowest kept, and lost the draw")


def _scored(one: Outcome) -> bool:
    return one.score is not None and not math.isnan(one.score)
