"""Decode with Qwen2.5-VL models of real size: a step against the bytes it must read, tokens per second beside generate.

A step reads the weights of the language model and the output head once, and the K and V of the tree once. That floor
knows nothing of arithmetic, which at 256 rows takes longer than reading the weights: the note says how long. The bound
on tokens per second takes every step to be the first, with all rows live and the prompts alone above them. The engine
runs with warm graphs and without its cache of image features, whose use depends on how often a problem comes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.bench import Bench, failed
from benchmarks.gpu.decode_work import Generation
from benchmarks.gpu.floors import layer_kv_bytes, tree_tokens
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.qwen import ImagePrompts, build_model, weight_bytes
from benchmarks.gpu.sizes import QWEN_3B, QWEN_7B, ROLLOUT, TINY_MODEL, TINY_ROLLOUT
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import product_rate

MODELS = {"decode_3b": ("Qwen2.5-VL-3B", QWEN_3B), "decode_7b": ("Qwen2.5-VL-7B", QWEN_7B)}
REPEATS = 2


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """The step, then the rollout."""
    (name, sizes), rollout = bench.sized((MODELS[bench.part], ROLLOUT), (("tiny model", TINY_MODEL), TINY_ROLLOUT))
    model = build_model(sizes, bench.device)
    work = Generation(model, ImagePrompts(sizes, rollout.prompt), rollout)
    repeats = bench.sized(REPEATS, 1)
    live = rollout.groups * rollout.samples
    weights = weight_bytes(model)

    def cache_bytes(generated: int) -> int:
        tokens = tree_tokens(rollout.groups, rollout.samples, rollout.prompt, generated)
        return sizes.layers * layer_kv_bytes(tokens, sizes.kv_heads, sizes.head_dim, model.dtype.itemsize)

    generated = (rollout.short + rollout.long) // 2
    floor = (weights + cache_bytes(generated)) / bench.bandwidth
    step = work.step_time(repeats)
    side = bench.sized(8192, 256)
    rate = product_rate(bench.device, model.dtype, side)
    operations = 2 * live * weights / model.dtype.itemsize
    yield bench.row(
        f"{name} decode step, {rollout.groups}x{rollout.samples} rows, {rollout.prompt}+{generated}",
        "RolloutEngine", "floor", step, floor, "ms", goal=Goal(most_floors=1.6), floor=floor,
        note=f"weights {weights / 1e9:.2f} GB, K and V of the tree {cache_bytes(generated) / 1e9:.2f} GB; products "
        f"alone {operations / rate * 1e3:.2f} ms at the {rate / 1e12:.0f} TFLOP/s of one of {side} cubed",
    )  # fmt: skip

    what = f"{name} rollout, {rollout.name}"
    ours, first = work.ours_rate(repeats)
    note = f"{work.produced} tokens; {first:.1f} s the first time"
    bound = live * bench.bandwidth / (weights + cache_bytes(0))
    yield bench.values(
        what, "RolloutEngine", "floor", ours, bound, "tokens/s", more_is_better=True, floor=bound, note=note
    )
    try:
        peer, peer_rows = work.peer_rate()
    except Exception as error:  # whatever a peer raises is the peer's
        yield failed(what, "model.generate", error)
        return
    note = "" if peer_rows == live else f"generate has memory for {peer_rows} rows at a time"
    yield bench.values(
        what, "RolloutEngine", "model.generate", ours, peer, "tokens/s",
        more_is_better=True, floor=bound, goal=Goal(least_ratio=10.0), note=note,
    )  # fmt: skip
