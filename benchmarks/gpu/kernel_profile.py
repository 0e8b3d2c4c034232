"""The kernels of each op on the sizes of the suite: how long each takes, launched one behind the other.

python -m benchmarks.gpu.kernel_profile [OP ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import tuning
from benchmarks.gpu.timing import WARM_UPS, Rotation

TURNS = 5


def medians(events: Iterable[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """Of (name, nanoseconds): name, calls and median microseconds of a kernel, in the order of first calls."""
    found: dict[str, list[int]] = defaultdict(list)
    for name, duration in events:
        found[name].append(duration)
    return [(name, len(times), statistics.median(times) / 1e3) for name, times in found.items()]


def measure(side: Rotation) -> list[tuple[str, int, float]]:
    """The kernels of a side, on the device it lives on."""
    for _ in range(WARM_UPS):
        for call in side.calls:
            call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(TURNS):
            for call in side.calls:
                call()
        torch.cuda.synchronize()
    events = [event for event in profiled.profiler.kineto_results.events() if str(event.device_type()).endswith("CUDA")]
    events.sort(key=lambda event: event.start_ns())
    return medians((event.name(), event.duration_ns()) for event in events)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernel_profile")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(sorted(tuning.SUBJECTS))}")
    options = parser.parse_args(arguments)
    unknown = set(options.ops) - tuning.SUBJECTS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}; allowed: {', '.join(sorted(tuning.SUBJECTS))}")
    if not torch.cuda.is_available():
        sys.exit("kernel_profile: needs a CUDA device")
    print(torch.cuda.get_device_name())
    for op in options.ops or sorted(tuning.SUBJECTS):
        for work, make in tuning.SUBJECTS[op][1].items():
            side = make(tuning.make_bench())
            for name, calls, microseconds in measure(side):
                each = calls / TURNS / len(side.calls)
                print(f"{op:16} {work:14} {microseconds:9.2f} us x {each:4.1f}  {name[:90]}", flush=True)


if __name__ == "__main__":
    main()
