"""Random prefix trees for the kernel tests: nested shared nodes, group-major rows, a leaf for each row."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import torch

from mstar_kernels import reference
from mstar_kernels.tree_attention import Tree


@dataclass(frozen=True)
class Case:
    """Inputs of one tree_attention call."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    tree: Tree
    positions: torch.Tensor

    def to(self, target: torch.dtype | str) -> Case:
        """In another precision, or on another device."""
        q, k_cache, v_cache = (tensor.to(target) for tensor in (self.q, self.k_cache, self.v_cache))
        if isinstance(target, torch.dtype):
            return Case(q, k_cache, v_cache, self.tree, self.positions)
        moved = {field.name: getattr(self.tree, field.name).to(target) for field in dataclasses.fields(self.tree)}
        return Case(q, k_cache, v_cache, Tree(**moved), self.positions.to(target))


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


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
    columns = [ints(column) for column in zip(*nodes)]
    tree = Tree(
        node_row_begin=columns[0],
        node_row_end=columns[1],
        node_table=ints(table_of),
        node_length=columns[2],
        node_start=columns[3],
        block_table=tables,
    )
    q = torch.randn(len(positions), kv_heads * gqa, head_dim, generator=generator) * magnitude
    return Case(q, k_cache, v_cache, tree, ints(positions))


def one_group(
    rows: int, shared: int, leaf_tokens: list[int], head_dim: int, block_size: int = 16, seed: int = 0, gqa: int = 2
) -> Case:
    """A prompt of `shared` tokens above `rows` leaves of their own tokens; 2 key/value heads."""
    generator = torch.Generator().manual_seed(seed)
    per_table = max(shared, *leaf_tokens) // block_size + 1
    tables = torch.arange((rows + 1) * per_table, dtype=torch.int32).view(rows + 1, per_table)
    shape = ((rows + 1) * per_table, 2, block_size, head_dim)
    begins, ends = [0, *range(rows)], [rows, *range(1, rows + 1)]
    tree = Tree(
        node_row_begin=ints(begins),
        node_row_end=ints(ends),
        node_table=ints(list(range(rows + 1))),
        node_length=ints([shared, *leaf_tokens]),
        node_start=ints([0] + [shared] * rows),
        block_table=tables,
    )
    return Case(
        torch.randn(rows, 2 * gqa, head_dim, generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        tree,
        ints([shared + tokens - 1 for tokens in leaf_tokens]),
    )


def expected(case: Case, **options) -> torch.Tensor:
    """The reference in float64."""
    case = case.to(torch.float64)
    options.setdefault("scale", case.q.shape[2] ** -0.5)
    return reference.tree_attention(case.q, case.k_cache, case.v_cache, case.tree, case.positions, **options)


def in_plain_pytorch(case: Case, softcap: float | None) -> torch.Tensor:
    """Row by row in the precision of the case, softmax included: what a kernel's error is measured by."""
    out = torch.zeros_like(case.q)
    for row in range(len(case.q)):
        k, v, _ = reference.gather_row(case.k_cache, case.v_cache, case.tree, row)
        gqa = case.q.shape[1] // k.shape[1]
        if not len(k):
            continue
        k, v = (x.transpose(0, 1).repeat_interleave(gqa, dim=0) for x in (k, v))
        scores = (case.q[row, :, None] @ k.transpose(1, 2)) * case.q.shape[2] ** -0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = (scores.softmax(-1) @ v)[:, 0]
    return out
