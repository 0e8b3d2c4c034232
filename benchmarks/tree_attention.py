"""`tree_attention` against attention without a tree: torch's sdpa, every row reading its whole prefix.

The peer gets its keys and values already gathered, contiguous [rows, kv heads, keys, D] (the gathering is not timed),
in one batched call, and the query heads of one kv head as query positions, so that it reads K and V once a row.

The floor is the larger of two times: the tree's K and V read once at the bandwidth of a copy, and its multiplications
(4 * keys * lanes * D for each node, a lane being a row and a query head) at the rate of a large float32 matmul.
Ours counts the checks of shapes; `checked=True`, as for every layer of a step after the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Row, Side, compare, copy_bytes_per_second, main, median_seconds
from mstar_kernels.reference import gather_row
from mstar_kernels.tree_attention import Tree, tree_attention

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """`groups` prompts of `prompt` tokens, each above `rows` rows of `generated` tokens of their own."""

    groups: int
    rows: int
    prompt: int
    generated: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return (
            f"{self.groups}x{self.rows} rows, {self.prompt}+{self.generated}, "
            f"{self.heads}/{self.kv_heads} heads, D={self.head_dim}, {str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def keys(self) -> int:
        """Tokens of the tree. Only whole blocks are shared: the prompt's tail is in every leaf."""
        return self.groups * (self.shared + self.rows * (self.prompt - self.shared + self.generated))

    @property
    def shared(self) -> int:
        return self.prompt // BLOCK_SIZE * BLOCK_SIZE

    @property
    def read_bytes(self) -> int:
        return self.keys * self.kv_heads * self.head_dim * 2 * self.dtype.itemsize

    @property
    def flops(self) -> int:
        return 4 * self.groups * self.rows * (self.prompt + self.generated) * self.heads * self.head_dim


SHAPES = (
    Shape(16, 16, 512, 64, 8, 2, 64),
    Shape(16, 16, 512, 64, 8, 2, 64, torch.bfloat16),
    Shape(1, 16, 256, 64, 8, 2, 64),
    Shape(16, 16, 40, 24, 4, 4, 32),
)


def build(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tree, Tensor]:
    """q, k_cache, v_cache, tree, positions; blocks scattered over the cache."""
    leaf = shape.prompt - shape.shared + shape.generated
    nodes: list[tuple[int, int, int, int]] = []
    for group in range(shape.groups):
        first = group * shape.rows
        nodes.append((first, first + shape.rows, shape.shared, 0))
        nodes += [(first + row, first + row + 1, leaf, shape.shared) for row in range(shape.rows)]
    used = [-(-length // BLOCK_SIZE) for _, _, length, _ in nodes]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(sum(used), generator=generator, dtype=torch.int32).split(used)
    block_table = torch.zeros(len(nodes), max(used), dtype=torch.int32)
    for table, blocks in zip(block_table, ids):
        table[: len(blocks)] = blocks
    begin, end, length, start = (torch.tensor(column, dtype=torch.int32) for column in zip(*nodes))
    tree = Tree(begin, end, torch.arange(len(nodes), dtype=torch.int32), length, start, block_table)
    cache_shape = (sum(used), shape.kv_heads, BLOCK_SIZE, shape.head_dim)
    rows = shape.groups * shape.rows
    q = torch.randn(rows, shape.heads, shape.head_dim, generator=generator).to(shape.dtype)
    k_cache, v_cache = (torch.randn(cache_shape, generator=generator).to(shape.dtype) for _ in range(2))
    return q, k_cache, v_cache, tree, torch.full((rows,), shape.prompt + shape.generated - 1, dtype=torch.int32)


def per_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """k, v: [rows, kv heads, keys, D]."""
    q = q.view(q.shape[0], k.shape[1], -1, q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).flatten(1, 2)


def matmul_flops_per_second(size: int = 1024) -> float:
    a = torch.randn(size, size)
    return 2 * size**3 / median_seconds([Side("matmul", lambda: a @ a)], 9)[0]


def rows(quick: bool) -> Iterator[Row]:
    bandwidth, rate = copy_bytes_per_second(), matmul_flops_per_second()
    print(f"copy {bandwidth / 1e9:.1f} GB/s read, matmul {rate / 1e9:.0f} GFLOP/s")
    for shape in SHAPES:
        q, k_cache, v_cache, tree, positions = build(shape)
        gathered = [gather_row(k_cache, v_cache, tree, row)[:2] for row in range(len(q))]
        k, v = (torch.stack(tensors).transpose(1, 2).contiguous() for tensors in zip(*gathered))
        scale = shape.head_dim**-0.5

        def ours(arguments=(q, k_cache, v_cache, tree, positions), scale=scale) -> Tensor:
            return tree_attention(*arguments, scale=scale, checked=True)

        def peer(q=q, k=k, v=v) -> Tensor:
            return per_row(q, k, v)

        torch.testing.assert_close(ours(), peer(), rtol=2e-2, atol=2e-2)
        row = compare(
            shape.name,
            Side("tree_attention", ours),
            Side("torch sdpa, whole prefix a row", peer),
            unit="us",
            per_second=lambda seconds: seconds * 1e6,
            repeats=5 if quick else 41,
            floor_value=max(shape.read_bytes / bandwidth, shape.flops / rate) * 1e6,
        )
        print(
            f"  {shape.read_bytes / 1e6:.1f} MB, {shape.flops / 1e9:.2f} GFLOP: "
            f"{shape.read_bytes / row.ours_value / 1e3:.1f} GB/s, {shape.flops / row.ours_value / 1e3:.0f} GFLOP/s"
        )
        yield row


if __name__ == "__main__":
    main("tree_attention", rows)
