"""What a subject measures with: the device, its bandwidth, the timer; and the making of its rows.

A subject is a module with `rows(bench)`, which yields `SuiteRow` and `Skipped` the moment it has them. Its sizes are
a pair, the real and the tiny ones, so that the same code is proven without a GPU. A peer that is not installed, or that
fails, is skipped by name: it must not take the rows behind it along.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from benchmarks.gpu.goals import Goal
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Prepared, Rotation, Timer, Timing
from benchmarks.harness import make_row

PER_SECOND = {"us": 1e6, "ms": 1e3, "s": 1.0}
PACKAGES = {
    "flashinfer": "FlashInfer",
    "flash_attn": "flash-attn",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "liger_kernel": "Liger",
}
"""Importable names of the peers that a machine may have, and what the table calls them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to do the same work: `make` builds it, `package` is what must be installed, if anything."""

    name: str
    make: Callable[[], Rotation]
    least_ratio: float | None = None
    package: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """`part` is the subject's name in the suite; `bandwidth` the bytes per second of a copy, read and written."""

    part: str
    device: torch.device
    tiny: bool
    bandwidth: float
    timer: Timer

    def sized(self, full: T, tiny: T) -> T:
        """One of a subject's two sizes."""
        return tiny if self.tiny else full

    def compare(
        self,
        what: str,
        ours: Rotation,
        peers: Sequence[Peer] = (),
        *,
        least_bytes: int | None = None,
        most_floors: float | None = None,
        unit: str = "us",
        note: str = "",
    ) -> Iterator[SuiteRow | Skipped]:
        """A row against the floor of `least_bytes`, if given, then one a peer, each measured turn by turn with ours."""
        prepared = self.timer.prepare(ours)
        floor = None if least_bytes is None else least_bytes / self.bandwidth
        if floor is not None:
            (alone,) = self.timer.compare([prepared])
            goal = None if most_floors is None else Goal(most_floors=most_floors)
            yield self.row(what, ours.name, "floor", alone, floor, unit, goal=goal, floor=floor, note=note)
        for peer in peers:
            yield self._beside(what, ours.name, prepared, peer, floor, unit, note)

    def _beside(
        self, what: str, ours: str, prepared: Prepared, peer: Peer, floor: float | None, unit: str, note: str
    ) -> SuiteRow | Skipped:
        """The row of one peer; what it holds on the device goes with it."""
        skipped = self.missing(what, peer.package)
        if skipped is not None:
            return skipped
        try:
            timing, theirs = self.timer.compare([prepared, self.timer.prepare(peer.make())])
        except Exception as error:  # whatever a peer raises is the peer's
            return failed(what, peer.name, error)
        if timing.how != theirs.how:
            note = f"{note}; peer timed by {theirs.how}".lstrip("; ")
        goal = None if peer.least_ratio is None else Goal(least_ratio=peer.least_ratio)
        return self.row(what, ours, peer.name, timing, theirs.seconds, unit, goal=goal, floor=floor, note=note)

    def row(
        self,
        what: str,
        ours: str,
        peer: str,
        timing: Timing,
        peer_seconds: float,
        unit: str,
        *,
        goal: Goal | None = None,
        floor: float | None = None,
        note: str = "",
    ) -> SuiteRow:
        """A row of times, `floor` and `peer_seconds` in seconds."""
        scale = PER_SECOND[unit]
        found = self.values(
            what, ours, peer, timing.seconds * scale, peer_seconds * scale, unit,
            floor=None if floor is None else floor * scale, goal=goal, note=note,
        )  # fmt: skip
        extra = {"spread": timing.spread, "timed": timing.how}
        if floor is not None:
            share = floor / timing.seconds
            extra |= {"floor_share": share, "gigabytes_per_second": share * self.bandwidth / 1e9}
        return SuiteRow(**asdict(found) | extra)

    def values(
        self,
        what: str,
        ours: str,
        peer: str,
        ours_value: float,
        peer_value: float,
        unit: str,
        *,
        more_is_better: bool = False,
        floor: float | None = None,
        goal: Goal | None = None,
        note: str = "",
    ) -> SuiteRow:
        """A row of values in its unit."""
        ratio = ours_value / peer_value if more_is_better else peer_value / ours_value
        row = make_row(what, ours, peer, ours_value, peer_value, unit, ratio, floor)
        judged = {} if goal is None else {"goal": str(goal), "met": goal.met(ratio), "verdict": goal.verdict(ratio)}
        again = {"command": f"python -m benchmarks.gpu_suite --only {self.part}"}
        return SuiteRow(**asdict(row) | judged | again, part=self.part, note=note)

    def missing(self, what: str, package: str | None) -> Skipped | None:
        """The entry for a peer that cannot be measured here; None when it can."""
        if package is None:
            return None
        name = PACKAGES[package]
        if importlib.util.find_spec(package) is None:
            return Skipped(what, name, f"{name} is not installed")
        if self.device.type != "cuda":
            return Skipped(what, name, f"{name} needs CUDA")
        return None


def failed(what: str, peer: str, error: Exception, ours: str = "") -> Skipped:
    """The entry for a peer that raised; `ours` says what ours did where no other row does."""
    lines = str(error).strip().splitlines() or [""]
    return Skipped(what, peer, f"failed: {type(error).__name__}: {lines[0]}" + (f"; ours: {ours}" if ours else ""))
