"""The funnel of every iteration: how many responses were sampled, right among them, kept among those.

Bars of one figure share a scale, so that iterations can be read against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mstar_engine.summary import IterationSummary
from mstar_engine.types import Estimate


@dataclass(frozen=True, slots=True)
class Funnel:
    """Counts that shrink, from `whole` over `middle` (None: not known) to `rest`; the shares are of the widest bar."""

    iteration: int
    whole: int
    middle: int | None
    rest: int
    whole_share: float
    middle_share: float
    rest_share: float
    accuracy: Estimate | None = None

    def of_whole(self, count: int | None) -> float | None:
        """A count as a share of `whole`."""
        return count / self.whole if self.whole and count is not None else None


def response_funnels(rows: Sequence[IterationSummary]) -> list[Funnel]:
    """Sampled, correct and kept responses of each iteration."""
    return _funnels([(row.iteration, row.sampled, row.correct, row.kept, None) for row in rows])


def pseudo_funnels(rows: Sequence[IterationSummary]) -> list[Funnel]:
    """Unlabelled problems that were met, got a vote, and passed the gate, where there were any."""
    return _funnels(
        [
            (row.iteration, row.pseudo.problems, row.pseudo.voted, row.pseudo.passed, row.pseudo.accuracy)
            for row in rows
            if row.pseudo is not None
        ]
    )


def _funnels(counts: list[tuple[int, int, int | None, int, Estimate | None]]) -> list[Funnel]:
    widest = max((whole for _, whole, *_ in counts), default=0) or 1
    return [
        Funnel(iteration, whole, middle, rest, whole / widest, (middle or 0) / widest, rest / widest, accuracy)
        for iteration, whole, middle, rest, accuracy in counts
    ]
