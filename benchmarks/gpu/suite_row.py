"""A row of the suite: the row of every benchmark, with the goal that it is held to and how it was timed."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import Row


@dataclass(frozen=True, slots=True)
class SuiteRow(Row):
    """`part` is the subject it belongs to; `peer` is "floor" where the floor itself is the measure.

    `gigabytes_per_second`: the floor's bytes over the time taken. `floor_share`: the floor's part of that time, 1 at
    best. `spread`: the middle half of the measurements, in parts of their median. `timed`: "graph" (replays between
    device events), "events" (as issued, between device events) or "clock". `met` is None for a row without a goal.
    """

    part: str = ""
    goal: str = ""
    met: bool | None = None
    verdict: str = ""
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    spread: float | None = None
    timed: str = "clock"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A peer that stands beside `subject` and was not measured, and why."""

    subject: str
    peer: str
    reason: str
