"""Random prefix trees for the kernel tests: nested shared nodes, group-major rows, a leaf for each row."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from mstar_kernels.tree_attention import Tree


@dataclass(frozen=True)
class Case:
    """Inputs of one tree_attention call."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    tree: Tree
    positions: torch.Tensor

    def to(self, dtype: torch.dtype) -> Case:
        return Case(self.q.to(dtype), self.k_cache.to(dtype), self.v_cache.to(dtype), self.tree, self.positions)


def make_case(
    seed: int,
    *,
    depth: int = 2,
    branching: int = 3,
    kv_heads: int = 2,
    gqa: int = 2,
    head_dim: int = 16,
    block_size: int = 4,
    shared_blocks: int = 4,
    leaf_tokens: int = 9,
    magnitude: float = 1.0,
) -> Case:
    """A forest of up to `branching` trees of at most `depth` shared levels; float32. Some leaves have no token."""
    rng = random.Random(seed)
    nodes: list[tuple[int, int, int, int]] = []  # row_begin, row_end, length, start
    positions: list[int] = []

    def grow(level: int, start: int) -> None:
        if level == depth or rng.random() < 0.15:
            # A row that sees nothing at all has no defined attention, so a leaf without ancestors holds a token.
            length = rng.randint(0 if start else 1, leaf_tokens)
            nodes.append((len(positions), len(positions) + 1, length, start))
            positions.append(max(0, start + length - 1))
            return
        length = rng.randint(0, shared_blocks) * block_size
        begin, here = len(positions), len(nodes)
        nodes.append((begin, begin, length, start))
        for _ in range(rng.randint(1, branching)):
            grow(level + 1, start + length)
        nodes[here] = (begin, len(positions), length, start)

    for _ in range(rng.randint(1, branching)):
        grow(0, 0)

    used = [-(-length // block_size) for _, _, length, _ in nodes]
    num_blocks = sum(used) + 3
    ids = list(range(num_blocks))
    rng.shuffle(ids)
    width = max(1, *used) + 1
    tables = torch.full((len(nodes) + 2, width), -7, dtype=torch.int32)  # -7: never to be read
    table_of = rng.sample(range(len(nodes) + 2), len(nodes))
    for table, count in zip(table_of, used):
        tables[table, :count] = torch.tensor([ids.pop() for _ in range(count)], dtype=torch.int32)

    generator = torch.Generator().manual_seed(seed)
    shape = (num_blocks, kv_heads, block_size, head_dim)
    k_cache, v_cache = (torch.randn(shape, generator=generator) for _ in range(2))
    for spare in ids:  # reading a block that belongs to nobody must show
        k_cache[spare] = v_cache[spare] = float("nan")
    ends = [(table, length) for table, (_, _, length, _) in zip(table_of, nodes) if length % block_size]
    for table, length in ends:
        last = int(tables[table, length // block_size])
        k_cache[last, :, length % block_size :] = v_cache[last, :, length % block_size :] = float("nan")
    columns = [torch.tensor(column, dtype=torch.int32) for column in zip(*nodes)]
    tree = Tree(
        node_row_begin=columns[0],
        node_row_end=columns[1],
        node_table=torch.tensor(table_of, dtype=torch.int32),
        node_length=columns[2],
        node_start=columns[3],
        block_table=tables,
    )
    q = torch.randn(len(positions), kv_heads * gqa, head_dim, generator=generator) * magnitude
    return Case(q, k_cache, v_cache, tree, torch.tensor(positions, dtype=torch.int32))
