"""What became of a run's verdicts: counts by reason, and of the LaTeX comparisons that ran into their limits."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mstar_engine.journal import Journal, plain
from mstar_engine.reward import latex
from mstar_engine.types import Response

EVENT = "latex"
"""The journal's event for the comparisons of a stage in one sitting."""


def counts_by_reason(responses: Iterable[Response]) -> dict[str, int]:
    """How many responses were judged for each reason, the commonest first; those that nobody judged are left out."""
    return dict(Counter(response.reason for response in responses if response.reason).most_common())


def compared_since(before: latex.LatexCounts, more: Mapping[str, int] | None = None) -> dict[str, int] | None:
    """The comparisons since the counts `before`, with those of `more`; None when there were none."""
    found = plain(latex.counts() - before)
    return _sum(more, found) if more or found["comparisons"] else None


def _sum(one: Mapping[str, int] | None, other: Mapping[str, int]) -> dict[str, int]:
    return {name: (one or {}).get(name, 0) + count for name, count in other.items()}


@contextlib.contextmanager
def latex_counted(journal: Journal, stage: str) -> Iterator[None]:
    """Record what is compared meanwhile, if anything is, however it ends (unless the disk does not take it)."""
    before = latex.counts()
    try:
        yield
    finally:
        found = compared_since(before)
        if found is not None:
            with contextlib.suppress(OSError):
                journal.append(EVENT, stage=stage, **found)


def latex_total(journal: Journal) -> dict[str, int] | None:
    """The comparisons of all stages and sittings so far; None when there were none."""
    total = None
    for event in journal.events:
        if event["event"] == EVENT:
            total = _sum(total, {name: event[name] for name in ("comparisons", "timeouts", "crashes")})
    return total
