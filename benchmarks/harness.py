"""One timer and one result schema for every benchmark.

The invariant: ours and the peer are measured in the same process, on the same threads and inputs, turn by turn, and
the median of each is reported, so that a change of the machine's load hits both. A benchmark is a file
`benchmarks/<name>.py` that yields rows and ends with `main("<name>", rows)`; run it as
`python -m benchmarks.<name> [--json FILE] [--quick] [--threads N]`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from mstar_engine.environment import device_name, versions
from mstar_kernels.dispatch import extension


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things compared: a name for the table, and a call that does the whole work once."""

    name: str
    call: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `ratio` above 1 means ours is ahead; `floor_value` is the physical limit, in the same unit."""

    subject: str
    ours: str
    peer: str
    ours_value: float
    peer_value: float
    unit: str
    ratio: float
    floor_value: float | None
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call, the GPU's queue drained before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def median_seconds(sides: list[Side], repeats: int) -> list[float]:
    """Median seconds of each side over `repeats` turns, one warm-up each, the sides taking turns."""
    for side in sides:
        timed(side.call)
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, measured in zip(sides, seconds):
            measured.append(timed(side.call))
    return [statistics.median(measured) for measured in seconds]


def compare(
    subject: str,
    ours: Side,
    peer: Side,
    *,
    unit: str,
    per_second: Callable[[float], float],
    repeats: int,
    floor_value: float | None = None,
    higher_is_better: bool = False,
) -> Row:
    """Measure both sides. `per_second` turns the seconds of one call into the row's unit."""
    ours_value, peer_value = (per_second(seconds) for seconds in median_seconds([ours, peer], repeats))
    ratio = ours_value / peer_value if higher_is_better else peer_value / ours_value
    return make_row(subject, ours.name, peer.name, ours_value, peer_value, unit, ratio, floor_value)


def make_row(
    subject: str,
    ours: str,
    peer: str,
    ours_value: float,
    peer_value: float,
    unit: str,
    ratio: float,
    floor_value: float | None = None,
) -> Row:
    """A row of values measured elsewhere in this process, stamped with device, versions, date and command."""
    return Row(
        subject, ours, peer, ours_value, peer_value, unit, ratio, floor_value,
        device_name(), versions(), datetime.date.today().isoformat(), " ".join(["python -m", *_command()]),
    )  # fmt: skip


def copy_bytes_per_second(size: int = 1 << 26, repeats: int = 9) -> float:
    """Bytes read per second by a copy of `size` bytes on torch's threads, measured here and now."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return size / median_seconds([Side("copy", lambda: target.copy_(source))], repeats)[0]


def _command() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec is not None else sys.argv[0], *sys.argv[1:]]


def _print_row(row: Row) -> None:
    floor = "" if row.floor_value is None else f"{row.floor_value:10.1f}"
    values = f"{row.ours_value:10.1f} {row.peer_value:12.1f} {row.unit:<12} {row.ratio:8.2f}x {floor:>10}"
    print(f"{row.subject:<40} {values}  {row.ours} / {row.peer}", flush=True)


def main(name: str, rows: Callable[[bool], Iterable[Row]]) -> None:
    """Command line of a benchmark: run `rows(quick)`, print a table, and write it with --json FILE."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that it runs, not how fast")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native = extension()
    if native is not None:
        native.set_num_threads(options.threads)
    print(f"{name}: {device_name()}; {', '.join(f'{key} {value}' for key, value in versions().items())}")
    print(f"{'subject':<40} {'ours':>10} {'peer':>12} {'unit':<12} {'ratio':>9} {'floor':>10}  ours / peer")
    measured = []
    for row in rows(options.quick):
        _print_row(row)
        measured.append(asdict(row))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(measured, indent=2) + "\n")
