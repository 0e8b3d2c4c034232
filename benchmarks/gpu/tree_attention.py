"""`tree_attention` of one layer, against attention that reads every row's whole prefix.

The nearest peer is our own kernel on a tree without sharing: a node a row, whose blocks are the prompt's and its own,
as an engine with prefix caching has them. Then torch's sdpa on K and V gathered beforehand, and FlashInfer and
flash-attn on paged caches whose rows share the prompt's pages. The floor is the tree's K and V, each token once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.attention_peers import flash_attn_calls, flashinfer_calls
from benchmarks.gpu.bench import Bench, Peer
from benchmarks.gpu.floors import layer_kv_bytes, tree_tokens
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Rotation
from benchmarks.tree_attention import BLOCK_SIZE, Shape, build, per_row
from mstar_kernels.attention_work import planned_work, workspace_size
from mstar_kernels.reference import gather_row
from mstar_kernels.tree_attention import Tree, tree_attention
from mstar_kernels.tree_attention_tiles import tiling_of

SIZES = {
    "Qwen2.5-VL-7B": Shape(16, 16, 1500, 500, 28, 4, 128, torch.bfloat16),
    "Qwen2.5-VL-3B": Shape(16, 16, 1500, 500, 16, 2, 128, torch.bfloat16),
}
TINY = {"tiny": Shape(2, 2, 40, 24, 4, 2, 64, torch.bfloat16)}
LAYERS = 3
"""Caches that are gone through in turn, as layers are: each is several times the L2 cache."""


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """One model's shape after the other."""
    for name, shape in bench.sized(SIZES, TINY).items():
        yield from _shape(bench, name, shape)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def _shape(bench: Bench, name: str, shape: Shape) -> Iterator[SuiteRow | Skipped]:
    q, k_cache, v_cache, tree, positions = build(shape)
    q, positions = q.to(bench.device), positions.to(bench.device)
    unshared = to_device(without_sharing(tree, shape), bench.device)
    tree = to_device(tree, bench.device)
    caches = [(k_cache.to(bench.device), v_cache.to(bench.device))]
    caches += [tuple(torch.randn_like(cache) for cache in caches[0]) for _ in range(LAYERS - 1)]
    scale = shape.head_dim**-0.5

    def attention(of: Tree, name: str) -> Rotation:
        plan = planned(of, q, k_cache)

        def call(k: Tensor, v: Tensor) -> Tensor:
            return tree_attention(q, k, v, of, positions, scale=scale, checked=True, **plan)

        return Rotation(name, tuple(lambda k=k, v=v: call(k, v) for k, v in caches))

    def sdpa() -> Rotation:
        gathered = [gather(k, v, tree, len(q)) for k, v in caches]
        return Rotation("torch sdpa, gathered", tuple(lambda k=k, v=v: per_row(q, k, v) for k, v in gathered))

    def others(name: str, calls) -> Rotation:
        return Rotation(name, tuple(calls(q, k, v, unshared, scale) for k, v in caches))

    ours = attention(tree, "tree_attention")
    expected = per_row(q, *gather(*caches[0], tree, len(q)))
    torch.testing.assert_close(ours.calls[0](), expected, rtol=2e-2, atol=2e-2)
    tokens = tree_tokens(shape.groups, shape.rows, shape.prompt, shape.generated)
    yield from bench.compare(
        f"tree_attention {name}, {shape.groups}x{shape.rows} rows, {shape.prompt}+{shape.generated}",
        ours,
        [
            Peer("a node a row", lambda: attention(unshared, "a node a row"), least_ratio=2.0),
            Peer("torch sdpa, gathered", sdpa, least_ratio=2.0),
            Peer("FlashInfer", lambda: others("FlashInfer", flashinfer_calls), 2.0, "flashinfer"),
            Peer("flash-attn", lambda: others("flash-attn", flash_attn_calls), 2.0, "flash_attn"),
        ],
        least_bytes=layer_kv_bytes(tokens, shape.kv_heads, shape.head_dim, shape.dtype.itemsize),
        most_floors=1.6,
    )


def planned(tree: Tree, q: Tensor, k_cache: Tensor) -> dict[str, object]:
    """What an engine prepares on a GPU once a step, for all layers: the work list, and memory for partial results."""
    if q.device.type != "cuda":
        return {}
    heads, head_dim = q.shape[1:]
    tiling = tiling_of(
        heads=heads, kv_heads=k_cache.shape[1], head_dim=head_dim, q_dtype=q.dtype, kv_dtype=k_cache.dtype,
        device=q.device,
    )  # fmt: skip
    work = planned_work(tree, tiling, rows=len(q), block_size=k_cache.shape[2])
    partial = torch.empty(workspace_size(work, heads, head_dim), dtype=torch.float32, device=q.device)
    return {"work": work, "workspace": partial}


def without_sharing(tree: Tree, shape: Shape) -> Tree:
    """The tree of `build` with one node a row: the blocks of the prompt, which fill whole blocks, and then its own."""
    shared_blocks = shape.shared // BLOCK_SIZE
    index = torch.arange(shape.groups * shape.rows, dtype=torch.int32)
    group = index // shape.rows
    prompt_node = group * (shape.rows + 1)  # a group's nodes: the prompt's, then its rows'
    own_node = prompt_node + 1 + index % shape.rows
    own_blocks = -(-tree.node_length[own_node[0]].item() // BLOCK_SIZE)
    tables = torch.cat([tree.block_table[prompt_node, :shared_blocks], tree.block_table[own_node, :own_blocks]], dim=1)
    length = torch.full_like(index, shape.prompt + shape.generated)
    return Tree(index, index + 1, index, length, torch.zeros_like(index), tables.contiguous())


def gather(k_cache: Tensor, v_cache: Tensor, tree: Tree, count: int) -> tuple[Tensor, Tensor]:
    """K and V of every row, contiguous [rows, kv heads, keys, D]."""
    gathered = [gather_row(k_cache, v_cache, tree, row)[:2] for row in range(count)]
    k, v = (torch.stack(tensors).transpose(1, 2).contiguous() for tensors in zip(*gathered))
    return k, v


def to_device(tree: Tree, device: torch.device) -> Tree:
    return replace(tree, **{name: getattr(tree, name).to(device) for name in Tree.__slots__})
