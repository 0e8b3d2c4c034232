"""Launch settings of the kernels beside other ones: what the recorded tables rest on. Nothing is tuned at run time.

    python -m benchmarks.gpu.tuning [--only OP ...] [--out DIR]

Each variant changes the settings of one kernel in this process alone, and is timed turn by turn with the recorded ones
on the sizes of the suite. Variants are compiled beforehand, several at a time, in processes of their own: Triton keeps
what it compiled on disk. The result is DIR/<date>_<device>_tuning.json. To take a variant over, edit the table that its
name begins with, and run the suite.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import sampling, step_rewards, tree_attention
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import Prepared, Rotation, Timer, input_sets
from benchmarks.sampling import arguments
from benchmarks.tree_attention import build
from mstar_engine.environment import device_name, versions
from mstar_kernels import sampling_triton, step_rewards_triton, tree_attention_tiles
from mstar_kernels.sampling import sample_tokens
from mstar_kernels.tree_attention import tree_attention as attend
from mstar_kernels.tree_attention_tiles import Tile

RESULTS = Path(__file__).resolve().parents[1] / "results"
TURNS, COMPILERS = 9, 12


@dataclass(frozen=True, slots=True)
class Variant:
    """One change: `owner[key]`, or the attribute of a module, becomes `value` while it is measured."""

    name: str
    owner: Any
    key: Any
    value: Any

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The change, and back."""
        is_table = isinstance(self.owner, dict)
        before = self.owner[self.key] if is_table else getattr(self.owner, self.key)
        put: Callable[[Any, Any], None] = (
            self.owner.__setitem__ if is_table else lambda key, value: setattr(self.owner, key, value)
        )
        put(self.key, self.value)
        try:
            yield
        finally:
            put(self.key, before)


def attention_variants() -> list[Variant]:
    """Tiles and programs of `tree_attention` with heads of 128."""
    tables = {"NARROW": tree_attention_tiles.NARROW, "WIDE": tree_attention_tiles.WIDE}
    narrow = ((32, 4, 4), (64, 2, 3), (64, 4, 2), (64, 4, 4), (128, 4, 2), (128, 4, 3), (128, 8, 3))
    tiles = [("NARROW", Tile(16, *settings)) for settings in narrow]
    tiles += [("WIDE", Tile(128, *settings)) for settings in ((64, 8, 2), (128, 8, 2), (64, 4, 3))]
    tiles += [("WIDE", Tile(64, 64, 4, 3))]
    found = [
        Variant(f"{table} {tile.lanes} lanes, {tile.keys} keys, {tile.warps} warps, {tile.stages} stages",
                tables[table], 128, tile)
        for table, tile in tiles
    ]  # fmt: skip
    for key, counts in (("NARROW_PROGRAMS", (2, 3, 4, 6, 12, 16)), ("WIDE_PROGRAMS", (2,))):
        found += [Variant(f"{key} {count}", tree_attention_tiles, key, count) for count in counts]
    return found


def sampling_variants() -> list[Variant]:
    """How the pass of `sample_tokens` is cut."""
    table, recorded = sampling_triton.SETTINGS, sampling_triton.SETTINGS["large"]
    changes = [{"chunk": 2048}, {"chunk": 8192}, {"lane": 8}, {"lane": 32}, {"stages": 2}, {"stages": 4}]
    changes += [{"lane": 8, "stages": 4}, {"chunk": 8192, "stages": 4}, {"lane": 32, "stages": 2}]
    found = []
    for change in changes:
        name = ", ".join(f"{key} {value}" for key, value in change.items())
        found.append(Variant(f"SETTINGS {name}", table, "large", replace(recorded, **change)))
    for warps in (4, 16):
        options = sampling_triton.ROW_OPTIONS | {"num_warps": warps}
        found.append(Variant(f"ROW_OPTIONS {warps} warps", sampling_triton, "ROW_OPTIONS", options))
    return found


def reward_variants() -> list[Variant]:
    """Steps a program of `step_rewards`, and its warps."""
    found = [Variant(f"ROWS {rows}", step_rewards_triton, "ROWS", rows) for rows in (4, 16)]
    options = step_rewards_triton.OPTIONS | {"num_warps": 8}
    return [*found, Variant("OPTIONS 8 warps", step_rewards_triton, "OPTIONS", options)]


def attention_calls(bench: Bench, name: str) -> Rotation:
    """One layer's decode attention at a model's shape; the work list is planned anew, so that its tiling counts."""
    shape = tree_attention.SIZES[name]
    q, k, v, tree, positions = build(shape)
    q, positions, tree = q.to(bench.device), positions.to(bench.device), tree_attention._to(tree, bench.device)
    caches = [(k.to(bench.device), v.to(bench.device)) for _ in range(tree_attention.LAYERS)]
    plan = tree_attention.planned(tree, q, k)
    options = {"scale": shape.head_dim**-0.5, "checked": True, **plan}
    return Rotation(name, tuple(lambda k=k, v=v: attend(q, k, v, tree, positions, **options) for k, v in caches))


def sampling_calls(bench: Bench, top_p: float) -> Rotation:
    """A batch of draws."""
    count, vocabulary, _ = sampling.SIZES
    sets, degrees = sampling._inputs(bench, count, vocabulary)
    given = arguments(degrees, 0, top_p, count, bench.device)
    calls = [lambda x=x: sample_tokens(x, **given, **sampling.UNWAITED, filtered=top_p < 1) for x in sets]
    return Rotation(f"top_p {top_p}", tuple(calls))


def reward_calls(bench: Bench) -> Rotation:
    """The launches of `step_rewards`."""
    shape = step_rewards.SIZES[0]
    size = shape.steps * shape.dim * shape.dtype.itemsize
    sets = [step_rewards.build(shape, bench.device) for _ in range(input_sets(size, bench.device))]
    return Rotation("step_rewards", tuple(step_rewards._launch(one) for one in sets))


SUBJECTS: dict[str, tuple[Callable[[], list[Variant]], dict[str, Callable[[Bench], Rotation]]]] = {
    "tree_attention": (
        attention_variants,
        {name: lambda bench, name=name: attention_calls(bench, name) for name in tree_attention.SIZES},
    ),
    "sampling": (
        sampling_variants,
        {"temperature": lambda bench: sampling_calls(bench, 1.0), "top-p": lambda bench: sampling_calls(bench, 0.95)},
    ),
    "step_rewards": (reward_variants, {"softmax, min": reward_calls}),
}


def measure(bench: Bench, op: str) -> Iterator[dict[str, Any]]:
    """A row a work and variant, the fastest first; a variant that cannot run says why."""
    make_variants, works = SUBJECTS[op]
    for work, make in works.items():
        sides: list[tuple[str, Prepared]] = [("recorded", bench.timer.prepare(make(bench)))]
        for variant in make_variants():
            try:
                with variant.applied():
                    sides.append((variant.name, bench.timer.prepare(make(bench))))
            except Exception as error:  # out of shared memory, registers: whatever Triton says
                reason = str(error).splitlines()[:1] or [type(error).__name__]
                yield {"op": op, "work": work, "variant": variant.name, "failed": reason[0]}
        times = bench.timer.compare([side for _, side in sides])
        recorded = times[0].seconds
        for (name, _), found in sorted(zip(sides, times), key=lambda pair: pair[1].seconds):
            yield {
                "op": op, "work": work, "variant": name, "microseconds": round(found.seconds * 1e6, 2),
                "ratio": round(recorded / found.seconds, 3), "spread": round(found.spread, 3), "timed": found.how,
            }  # fmt: skip


def compile_all(ops: Sequence[str]) -> None:
    """Fill Triton's cache: a process for each variant, several at a time."""
    tasks = [(op, index) for op in ops for index in range(len(SUBJECTS[op][0]()))]
    running: list[subprocess.Popen[bytes]] = []
    for op, index in tasks:
        if len(running) >= min(COMPILERS, len(os.sched_getaffinity(0))):
            running.pop(0).wait()
        command = [sys.executable, "-m", "benchmarks.gpu.tuning", "--compile", op, str(index)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for process in running:
        process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tuning")
    parser.add_argument("--only", nargs="+", choices=sorted(SUBJECTS), metavar="OP", default=sorted(SUBJECTS))
    parser.add_argument("--out", type=Path, metavar="DIR", default=RESULTS)
    parser.add_argument("--compile", nargs=2, metavar=("OP", "INDEX"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("tuning: needs a CUDA device")
    device = torch.device("cuda")
    bench = Bench("tuning", device, False, 1.0, Timer(device, TURNS))
    if options.compile is not None:
        make_variants, works = SUBJECTS[options.compile[0]]
        with make_variants()[int(options.compile[1])].applied():
            for make in works.values():
                make(bench).calls[0]()
        return
    compile_all(options.only)
    rows = []
    for op in options.only:
        for row in measure(bench, op):
            rows.append(row)
            figure = row.get("failed") or f"{row['microseconds']:8.2f} us  {row['ratio']:.3f}x"
            print(f"{op:16} {row['work']:14} {row['variant']:46} {figure}", flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    date = datetime.date.today().isoformat()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{date}_{slug}_tuning.json"
    path.write_text(json.dumps({"device": device_name(), "versions": versions(), "date": date, "rows": rows}, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
