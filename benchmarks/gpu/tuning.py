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
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import sampling, step_rewards, tree_attention
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import Prepared, Rotation, Timer, input_sets
from benchmarks.sampling import arguments
from benchmarks.tree_attention import build
from mstar_engine.environment import device_name, versions
from mstar_kernels import sampling_triton, step_rewards_triton, tree_attention_tiles
from mstar_kernels.sampling import sample_tokens
from mstar_kernels.tree_attention import Tree
from mstar_kernels.tree_attention import tree_attention as attend
from mstar_kernels.tree_attention_tiles import Tile

RESULTS = Path(__file__).resolve().parents[1] / "results"
TURNS, COMPILERS = 9, 12


@dataclass(frozen=True, slots=True)
class Variant:
    """`changes` (owner, key, value): `owner[key]`, or a module's attribute, becomes `value` while it is measured."""

    name: str
    changes: tuple[tuple[Any, Any, Any], ...]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The changes, and back."""
        before = [look_up(owner, key) for owner, key, _ in self.changes]
        try:
            for change in self.changes:
                _put(*change)
            yield
        finally:
            for (owner, key, _), value in zip(self.changes, before):
                _put(owner, key, value)


def look_up(owner: Any, key: Any) -> Any:
    """An entry of a table, or an attribute."""
    return owner[key] if isinstance(owner, dict) else getattr(owner, key)


def _put(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, dict):
        owner[key] = value
    else:
        setattr(owner, key, value)


def attention_variants() -> list[Variant]:
    """Tiles and programs of `tree_attention` with heads of 128."""
    tables = {"NARROW": tree_attention_tiles.NARROW, "WIDE": tree_attention_tiles.WIDE}

    def variant(**tiles: Tile) -> Variant:
        name = "; ".join(f"{table} {t.lanes} x {t.keys}, {t.warps}w {t.stages}s" for table, t in tiles.items())
        return Variant(name, tuple((tables[table], 128, tile) for table, tile in tiles.items()))

    narrow = [Tile(16, *settings) for settings in ((32, 4, 3), (32, 4, 4), (64, 4, 2))]
    wide = [Tile(128, *settings) for settings in ((64, 8, 4), (32, 8, 4), (32, 8, 6), (64, 8, 2))]
    wide += [Tile(64, *settings) for settings in ((64, 4, 3), (32, 4, 4))]
    found = [variant(NARROW=tile) for tile in narrow] + [variant(WIDE=tile) for tile in wide]
    found += [variant(NARROW=n, WIDE=w) for n in (narrow[0], narrow[2]) for w in (wide[0], wide[2], wide[5])]
    for key, counts in (("NARROW_PROGRAMS", (4, 12)), ("WIDE_PROGRAMS", (2,))):
        found += [Variant(f"{key} {count}", ((tree_attention_tiles, key, count),)) for count in counts]
    return found


def sampling_variants() -> list[Variant]:
    """How the pass of `sample_tokens` is cut."""
    table, recorded = sampling_triton.SETTINGS, sampling_triton.SETTINGS["large"]
    changes = [{"chunk": 2048}, {"chunk": 8192}, {"lane": 8}, {"lane": 32}, {"stages": 2}, {"stages": 4}]
    changes += [{"lane": 8, "stages": 4}, {"chunk": 8192, "stages": 4}, {"lane": 32, "stages": 2}]
    found = []
    for change in changes:
        name = ", ".join(f"{key} {value}" for key, value in change.items())
        found.append(Variant(f"SETTINGS {name}", ((table, "large", replace(recorded, **change)),)))
    for warps in (4, 16):
        options = sampling_triton.ROW_OPTIONS | {"num_warps": warps}
        found.append(Variant(f"ROW_OPTIONS {warps} warps", ((sampling_triton, "ROW_OPTIONS", options),)))
    return found


def reward_variants() -> list[Variant]:
    """Steps a program of `step_rewards`, and its warps."""
    found = [Variant(f"ROWS {rows}", ((step_rewards_triton, "ROWS", rows),)) for rows in (4, 16)]
    options = step_rewards_triton.OPTIONS | {"num_warps": 8}
    return [*found, Variant("OPTIONS 8 warps", ((step_rewards_triton, "OPTIONS", options),))]


@cache
def _attention_inputs(generated: int) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, Tensor]], Tree, float]:
    shape = replace(tree_attention.SIZES["Qwen2.5-VL-7B"], generated=generated)
    q, k, v, tree, positions = build(shape)
    caches = [(k.cuda(), v.cuda()) for _ in range(tree_attention.LAYERS)]
    return (
        (q.cuda(), positions.cuda()),
        caches,
        tree_attention.to_device(tree, torch.device("cuda")),
        shape.head_dim**-0.5,
    )


def attention_calls(bench: Bench, generated: int) -> Rotation:
    """One layer's decode attention of Qwen2.5-VL-7B; the work list is planned anew, so that its tiling counts."""
    (q, positions), caches, tree, scale = _attention_inputs(generated)
    options = {"scale": scale, "checked": True, **tree_attention.planned(tree, q, caches[0][0])}
    calls = tuple(lambda k=k, v=v: attend(q, k, v, tree, positions, **options) for k, v in caches)
    return Rotation(f"{generated} generated", calls)


def sampling_calls(bench: Bench, top_p: float) -> Rotation:
    """A batch of draws."""
    count, vocabulary, _ = sampling.SIZES
    sets, degrees = sampling.inputs(bench, count, vocabulary)
    given = arguments(degrees, 0, top_p, count, bench.device)
    calls = [lambda x=x: sample_tokens(x, **given, **sampling.UNWAITED, filtered=top_p < 1) for x in sets]
    return Rotation(f"top_p {top_p}", tuple(calls))


def reward_calls(bench: Bench) -> Rotation:
    """The launches of `step_rewards`."""
    shape = step_rewards.SIZES[0]
    size = shape.steps * shape.dim * shape.dtype.itemsize
    sets = [step_rewards.build(shape, bench.device) for _ in range(input_sets(size, bench.device))]
    return Rotation("step_rewards", tuple(step_rewards.launches(one) for one in sets))


SUBJECTS: dict[str, tuple[Callable[[], list[Variant]], dict[str, Callable[[Bench], Rotation]]]] = {
    "tree_attention": (
        attention_variants,
        {
            "1500+500": lambda bench: attention_calls(bench, 500),
            "1500+200": lambda bench: attention_calls(bench, 200),
            "1500+32": lambda bench: attention_calls(bench, 32),
        },
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


def _compile(task: tuple[str, int]) -> None:
    op, index = task
    make_variants, works = SUBJECTS[op]
    bench = make_bench()
    with make_variants()[index].applied():
        list(works.values())[-1](bench).calls[0]()  # all works of an op compile the same


def compile_all(ops: Sequence[str]) -> None:
    """Fill Triton's cache, several variants at a time, in forks of this process, which has not touched the device."""
    tasks = [(op, index) for op in ops for index in range(len(SUBJECTS[op][0]()))]
    with ProcessPoolExecutor(min(COMPILERS, len(os.sched_getaffinity(0))), get_context("fork")) as pool:
        for future in [pool.submit(_compile, task) for task in tasks]:
            with contextlib.suppress(Exception):  # measuring it will say what is wrong
                future.result()


def make_bench() -> Bench:
    """A bench of the device at real sizes; its bandwidth is not asked for."""
    device = torch.device("cuda")
    return Bench("tuning", device, False, 1.0, Timer(device, TURNS))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tuning")
    parser.add_argument("--only", nargs="+", choices=sorted(SUBJECTS), metavar="OP", default=sorted(SUBJECTS))
    parser.add_argument("--out", type=Path, metavar="DIR", default=RESULTS)
    options = parser.parse_args(arguments)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask must not start CUDA, which a fork cannot go on with
    if not torch.cuda.is_available():
        sys.exit("tuning: needs a CUDA device")
    compile_all(options.only)
    bench, rows = make_bench(), []
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
