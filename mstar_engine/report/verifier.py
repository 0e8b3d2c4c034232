"""The process reward model as a verifier: one answer from K samples, by three rules, before and after evolving."""

from __future__ import annotations

from dataclasses import dataclass

from mstar_engine.summary import Summary
from mstar_engine.types import Estimate

RULES = ("best_of_n", "weighted", "majority")


@dataclass(frozen=True, slots=True)
class Cell:
    """An accuracy, that of the warmed-up policy beside it, and whether it is the `best` of its row."""

    now: Estimate
    before: Estimate | None
    best: bool


@dataclass(frozen=True, slots=True)
class VerifierTable:
    """A row of cells, in the order of `RULES`, for each K; `iteration` 0 is the warmed-up policy."""

    iteration: int
    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    greedy: Estimate | None
    greedy_before: Estimate | None


def verifier_table(summary: Summary) -> VerifierTable | None:
    """The newest measurement of the verifier; None when there is none."""
    start = summary.warmup
    before = (start and start.verifier) or {}
    measured = [row for row in summary.evolve if row.verifier]
    if not measured and not before:
        return None
    if measured:
        newest = measured[-1]
        now, iteration, greedy = newest.verifier, newest.iteration, newest.greedy
        greedy_before = start and start.validation_greedy
    else:
        now, iteration, greedy, greedy_before, before = before, 0, start.validation_greedy, None, {}
    rows = []
    for k in sorted(now):
        values = [getattr(now[k], rule) for rule in RULES]
        # Where all rules agree, as they must at K = 1, none is the best.
        top = max(e.value for e in values) if len({e.value for e in values}) > 1 else None
        then = [getattr(before[k], rule) if k in before else None for rule in RULES]
        rows.append((k, tuple(Cell(e, old, e.value == top) for e, old in zip(values, then, strict=True))))
    return VerifierTable(iteration, tuple(rows), greedy, greedy_before)
