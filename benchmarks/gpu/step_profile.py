"""Where the time of a decode step goes on a GPU: its kernels by name, and how long the device had nothing to do.

    python -m benchmarks.gpu.step_profile [decode_7b|decode_3b] [--compile]

The rollout is that of `benchmarks.gpu.decode`, all rows live, soon after their prompts. Kernels of two streams overlap,
so their sum can be above the time that the device was busy.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.decode import MODELS
from benchmarks.gpu.decode_work import Generation
from benchmarks.gpu.qwen import ImagePrompts, build_model
from benchmarks.gpu.sizes import ROLLOUT

Event = tuple[int, int, str]
"""Begin and duration in nanoseconds, and the kernel's name."""
TOKENS, LAST = 48, 32
END = "draw_kernel"
"""The last kernel of a step."""
NAME_WIDTH, ROWS = 100, 24


def last_steps(events: Sequence[Event], steps: int) -> list[Event]:
    """The kernels of the last `steps` steps but one, in order; ValueError where there are fewer."""
    events = sorted(events)
    ends = [i for i, (_, _, name) in enumerate(events) if END in name]
    if len(ends) < steps + 2:
        raise ValueError(f"step_profile: {len(ends)} decode steps were seen; wanted: {steps + 2} or more")
    return events[ends[-steps - 2] + 1 : ends[-2] + 1]


def busy(events: Sequence[Event]) -> int:
    """Nanoseconds in which at least one kernel ran."""
    total, end = 0, 0
    for begin, duration, _ in sorted(events):
        total += max(0, begin + duration - max(begin, end))
        end = max(end, begin + duration)
    return total


def table(events: Sequence[Event], steps: int) -> list[str]:
    """Lines: a step's time, then its kernels, the costliest first; microseconds a step."""
    spent, calls = Counter[str](), Counter[str]()
    for _, duration, name in events:
        spent[name] += duration
        calls[name] += 1
    span = max(begin + duration for begin, duration, _ in events) - min(begin for begin, _, _ in events)
    per_step = 1e3 * steps
    found = [
        f"a step: {span / per_step:.0f} us, the device busy for {busy(events) / per_step:.0f} us, "
        f"{len(events) / steps:.0f} kernels",
        f"{'us a step':>10} {'calls':>6} {'us a call':>10}  kernel",
    ]
    for name, duration in spent.most_common(ROWS):
        each = duration / calls[name] / 1e3
        found.append(f"{duration / per_step:10.1f} {calls[name] / steps:6.1f} {each:10.2f}  {name[:NAME_WIDTH]}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.step_profile")
    parser.add_argument("model", nargs="?", choices=sorted(MODELS), default="decode_7b")
    parser.add_argument("--compile", action="store_true", help="with torch.compile in place of the fused kernels")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("step_profile: needs a CUDA device")
    name, sizes = MODELS[options.model]
    work = Generation(
        build_model(sizes, torch.device("cuda")), ImagePrompts(sizes, ROLLOUT.prompt), ROLLOUT,
        torch_compile=options.compile,
    )  # fmt: skip
    work.run_engine(TOKENS)  # compiles and captures
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work.run_engine(TOKENS)
        torch.cuda.synchronize()
    events = [
        (event.start_ns(), event.duration_ns(), event.name())
        for event in profiled.profiler.kineto_results.events()
        if str(event.device_type()).endswith("CUDA")
    ]
    print(f"{name}, {ROLLOUT.groups}x{ROLLOUT.samples} rows, prompt {ROLLOUT.prompt}, {torch.cuda.get_device_name()}")
    print("\n".join(table(last_steps(events, LAST), LAST)))


if __name__ == "__main__":
    main()
