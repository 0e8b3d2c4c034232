"""Why responses were wrong, iteration by iteration: the verdicts' reasons, the commonest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mstar_engine.reward.verdict import MATCH
from mstar_engine.summary import IterationSummary

MOST = 6
"""Reasons that have a column; the rest share one."""
OTHERS = "other"


@dataclass(frozen=True, slots=True)
class WrongRow:
    """One iteration's `counts`, one for each reason of the table, and their sum."""

    iteration: int
    counts: tuple[int, ...]
    total: int


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """The table: a column for each of `reasons`, a row for each iteration whose verdicts have them."""

    reasons: tuple[str, ...]
    rows: tuple[WrongRow, ...]


def wrong_answers(iterations: Sequence[IterationSummary]) -> WrongAnswers | None:
    """The table of a run; None when no verdict said why, as in runs of earlier versions."""
    found = [(one.iteration, {why: n for why, n in one.reasons.items() if why != MATCH}) for one in iterations]
    known = [(number, counts) for (number, counts), one in zip(found, iterations, strict=True) if one.reasons]
    total = Counter()
    for _, counts in known:
        total.update(counts)
    if not total:
        return None
    reasons = [why for why, _ in total.most_common()]
    shown = reasons if len(reasons) <= MOST else reasons[: MOST - 1]
    rows = []
    for number, counts in known:
        cells = [counts.get(why, 0) for why in shown]
        if len(shown) < len(reasons):
            cells.append(sum(counts.values()) - sum(cells))
        rows.append(WrongRow(number, tuple(cells), sum(counts.values())))
    return WrongAnswers((*shown, *([OTHERS] if len(shown) < len(reasons) else [])), tuple(rows))
