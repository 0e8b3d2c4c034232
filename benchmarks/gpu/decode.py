"""Decode with a Qwen2.5-VL model of real size: a step against the bytes it must read, tokens per second beside generate.

A step reads the weights of the language model and the output head once, and the K and V of the tree once. The engine
runs with warm graphs and without its cache of image features, whose use depends on how often a problem comes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.bench import Bench, failed
from benchmarks.gpu.decode_work import FULL, TINY, Generation
from benchmarks.gpu.floors import layer_kv_bytes, tree_tokens
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.qwen import QWEN_3B, QWEN_7B, ImagePrompts, build_model, weight_bytes
from benchmarks.gpu.qwen import TINY as TINY_MODEL
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Timing

MODELS = {"decode_3b": ("Qwen2.5-VL-3B", QWEN_3B), "decode_7b": ("Qwen2.5-VL-7B", QWEN_7B)}
REPEATS = 3


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """The step, then the rollout."""
    name, sizes = MODELS[bench.part]
    sizes, rollout = bench.sized((sizes, FULL), (TINY_MODEL, TINY))
    model = build_model(sizes, bench.device)
    work = Generation(model, ImagePrompts(sizes, rollout.prompt), rollout)
    repeats = bench.sized(REPEATS, 1)

    generated = (rollout.short + rollout.long) // 2
    tokens = tree_tokens(rollout.groups, rollout.samples, rollout.prompt, generated)
    cache = sizes.layers * layer_kv_bytes(tokens, sizes.kv_heads, sizes.head_dim, model.dtype.itemsize)
    weights = weight_bytes(model)
    floor = (weights + cache) / bench.bandwidth
    step = Timing(work.step_seconds(repeats), 0.0, "clock")
    yield bench.row(
        f"{name} decode step, {rollout.groups}x{rollout.samples} rows, {rollout.prompt}+{generated}",
        "RolloutEngine", "floor", step, floor, "ms", goal=Goal(most_floors=1.6), floor=floor,
        note=f"weights {weights / 1e9:.2f} GB, K and V of the tree {cache / 1e9:.2f} GB",
    )  # fmt: skip

    what = f"{name} rollout, {rollout.name}"
    ours, first = work.ours_rate(repeats)
    note = f"{work.produced} tokens; {first:.1f} s the first time"
    try:
        peer, peer_rows = work.peer_rate()
    except Exception as error:  # a peer's failure must not take our figure along
        yield failed(what, "model.generate", error)
        peer, peer_rows = float("nan"), 0
    if peer_rows < rollout.groups * rollout.samples:
        note += f"; generate has memory for {peer_rows} rows at a time"
    yield bench.values(
        what, "RolloutEngine", "model.generate", ours, peer, "tokens/s",
        more_is_better=True, goal=Goal(least_ratio=10.0), note=note,
    )  # fmt: skip
