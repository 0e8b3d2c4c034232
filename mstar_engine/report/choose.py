"""Which problems of an iteration the report shows: some of every outcome, the telling ones first.

Outcomes are read batch by batch and only counted, so that memory grows with the problems and not with their responses.
The choice is a function of the files: reporting twice shows the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ALL, SOME, NONE, NOT_JUDGED = "all", "some", "none", "open"
OUTCOMES = (ALL, SOME, NONE)
# A step that scores below this is more likely wrong than right.
WEAK = 0.5
_COLUMNS = ["problem_id", "source", "correct", "selected", "step_scores"]
_BATCH = 8192
# The order in which outcomes take turns; half of what is shown is solved by some.
_TURNS = (SOME, ALL, SOME, NONE)


@dataclass(slots=True)
class Tally:
    """The responses to one problem in numbers; `lucky`: a right one with a weak step was not selected."""

    source: str
    samples: int = 0
    judged: int = 0
    right: int = 0
    lucky: bool = False

    @property
    def outcome(self) -> str:
        """Which samples solved the problem: one of `OUTCOMES`, or NOT_JUDGED."""
        if not self.judged:
            return NOT_JUDGED
        return ALL if self.right == self.samples else SOME if self.right else NONE


def tallies(file: Path) -> dict[str, Tally]:
    """The tally of every problem in a rollout file, by problem id."""
    found: dict[str, Tally] = {}
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: damaged: {error}") from None
    with parquet:
        for batch in parquet.iter_batches(_BATCH, columns=_COLUMNS):
            for name, source, correct, selected, scores in zip(*(batch[c].to_pylist() for c in _COLUMNS), strict=True):
                tally = found.setdefault(name, Tally(source))
                tally.samples += 1
                tally.judged += correct is not None
                tally.right += correct is True
                tally.lucky |= is_lucky(correct, selected, min(scores) if scores else None)
    return found


def is_lucky(correct: bool | None, selected: bool, weakest: float | None) -> bool:
    """Right and not selected, with a weak step: the answer may be luck."""
    return correct is True and not selected and weakest is not None and weakest < WEAK


def choose(found: dict[str, Tally], wanted: int, pictured: Callable[[str], bool]) -> list[str]:
    """Ids of up to `wanted` problems, outcomes taking turns.

    Of an outcome, those that are `pictured` come first, then those with a lucky response; sources take turns.
    """

    def interest(name: str) -> tuple[bool, bool, bytes]:
        return not pictured(name), not found[name].lucky, hashlib.sha256(name.encode()).digest()

    queues: dict[str, list[str]] = {ALL: [], SOME: [], NONE: [], NOT_JUDGED: []}
    for name in _by_source(sorted(found, key=interest), found):
        queues[found[name].outcome].append(name)
    chosen: list[str] = []
    while len(chosen) < wanted and any(queues.values()):
        for outcome in (*_TURNS, NOT_JUDGED):
            if queues[outcome] and len(chosen) < wanted:
                chosen.append(queues[outcome].pop(0))
    return chosen


def _by_source(names: list[str], found: dict[str, Tally]) -> list[str]:
    """The first of each source and outcome, then the second of each, and so on."""
    turns: dict[tuple[str, str], int] = {}
    keyed = []
    for rank, name in enumerate(names):
        key = (found[name].source, found[name].outcome)
        turns[key] = turns.get(key, -1) + 1
        keyed.append((turns[key], rank, name))
    return [name for _, _, name in sorted(keyed)]
