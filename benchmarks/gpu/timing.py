"""Times on a device: warmed up, on inputs that are not in its cache, many calls, the median.

On CUDA a side's calls are captured in a graph and its replays timed with device events, so that launches of a few
microseconds are not timed by how fast the host can issue them; a side that cannot be captured is timed as it is issued,
and its `how` says so. On the CPU the wall clock does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARM_UPS = 2
CACHES = 4
"""The input sets of a side fill the L2 cache this many times."""
LEAST_SECONDS = 2e-3
"""A measurement is repeated between two events until it takes this long."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """One side: a name for the table, and the same work once for each of several input sets.

    `waits`: a call waits for the device, so it cannot be captured.
    """

    name: str
    calls: tuple[Callable[[], object], ...]
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """`seconds` of one call, the median; `spread`, the middle half of the measurements in parts of it; `how`."""

    seconds: float
    spread: float
    how: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A side that is warm: `run` goes through the calls of `side` once. A graph reads what `side` holds on to."""

    run: Callable[[], object]
    side: Rotation
    how: str

    @property
    def count(self) -> int:
        """Calls of a run."""
        return len(self.side.calls)


class Timer:
    """Times sides on `device`, `turns` measurements each, the sides taking turns."""

    def __init__(self, device: torch.device, turns: int) -> None:
        self.device = device
        self.turns = turns

    def prepare(self, side: Rotation) -> Prepared:
        """Warm a side up and, on CUDA, capture it."""

        def run() -> None:
            for call in side.calls:
                call()

        if self.device.type != "cuda":
            run()
            return Prepared(run, side, "clock")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if side.waits:
            return Prepared(run, side, "events")
        before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except Exception:  # libraries raise many types here; what cannot be captured is timed as issued
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream current
            torch.cuda.synchronize()
            return Prepared(run, side, "events")
        graph.replay()
        return Prepared(graph.replay, side, "graph")

    def compare(self, sides: Sequence[Prepared]) -> list[Timing]:
        """The times of the sides, turn by turn, so that a change of clocks or load hits all."""
        loops = [max(1, round(LEAST_SECONDS / self._elapsed(side, 1))) for side in sides]
        measured: list[list[float]] = [[] for _ in sides]
        for _ in range(self.turns):
            for side, count, seconds in zip(sides, loops, measured):
                seconds.append(self._elapsed(side, count) / (count * side.count))
        return [summary(seconds, side.how) for seconds, side in zip(measured, sides)]

    def _elapsed(self, side: Prepared, loops: int) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(loops):
                side.run()
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(loops):
            side.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


def summary(seconds: list[float], how: str) -> Timing:
    """Median and spread of some measurements."""
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    return Timing(median, (high - low) / median, how)


def input_sets(set_bytes: int, device: torch.device) -> int:
    """How many input sets of `set_bytes` a side needs so that none is found in the cache when its turn comes again."""
    if device.type != "cuda":
        return 2
    return max(2, -(-CACHES * torch.cuda.get_device_properties(device).L2_cache_size // set_bytes))


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written together, of copies of `size` bytes on the device: the best of three forms.

    A driver's copy within a graph moved 2.7 TB/s on an H200 where other forms move 4.3, so one form alone may flatter.
    """
    source = torch.randint(2**31 - 1, (size // 4,), dtype=torch.int32, device=device)
    pairs = [(source, torch.empty_like(source))]
    pairs.append(pairs[0][::-1])
    timer = Timer(device, turns=9)

    def form(name: str, call: Callable[[torch.Tensor, torch.Tensor], object], waits: bool = False) -> Prepared:
        return timer.prepare(Rotation(name, tuple(lambda s=s, t=t: call(s, t) for s, t in pairs), waits))

    forms = [form("captured", lambda s, t: t.copy_(s)), form("issued", lambda s, t: t.copy_(s), waits=True)]
    forms.append(form("elementwise", lambda s, t: torch.bitwise_not(s, out=t)))
    return 2 * size / min(found.seconds for found in timer.compare(forms))


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a product of two random square matrices of `side` rows, by the library that is there."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timer = Timer(device, turns=9)
    product = Rotation("product", (lambda: a @ b,))
    return 2 * side**3 / timer.compare([timer.prepare(product)])[0].seconds
