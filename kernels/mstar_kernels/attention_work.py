"""The work list of `tree_attention` on a GPU: a step's nodes cut into items, planned on the host once for all layers.

A CUDA graph fixes how many programs run, so what they do is read from arrays. An item is a tile of rows below a node
and a piece of the node's keys; it leaves a partial result, in a slot, for each of its rows, and merging adds up the
slots of a row. How a node's keys are cut depends on all nodes of the step, so on CUDA the other rows of a batch can
change a row's last bits, by no more than rounding.

One int32 allocation holds everything, so that a step's list goes to the device in one copy. csrc/rollout/
attention_work.h says how nodes are cut; `attention_work_reference` is the same in Python.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mstar_kernels import attention_work_reference as reference
from mstar_kernels.dispatch import extension, resolve

if TYPE_CHECKING:
    from mstar_kernels.tree_attention import Tree

AVAILABLE = ("cpu", "reference")
COUNTS = 8
"""int32 in front of the items, of which three are used: the items that follow are aligned to 32 bytes."""
ALIGNMENT = 4
"""Slots: a multiple keeps what lies behind them, here and in the partial results, aligned to 16 bytes."""
FIELDS = 8
"""int32 of an item: node, row begin, row end, key begin, key end, first slot, row of the block table, node's start."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How rows and keys are cut. One for an engine and a model: see `mstar_kernels.tree_attention_tiles.tiling_of`.

    kv_heads: programs an item is taken by.
    narrow_rows, wide_rows: rows of a tile. A node with more than narrow_rows rows below it gets wide tiles.
    narrow_programs, wide_programs: programs of each kind that fill the device; pieces of keys are about as long as
        there is work for each. Also how many are launched: one takes every so-many-th pair of item and kv head.
    quantum: keys; the length of a piece is a multiple, its node's last piece excepted.
    """

    kv_heads: int
    narrow_rows: int
    wide_rows: int
    narrow_programs: int
    wide_programs: int
    quantum: int = 128


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """A work list of fixed capacity: for up to R rows, I items and S slots. All tensors are views of `data`, int32.

    counts: [3] wide items, narrow items, slots.
    items: [I, FIELDS], wide ones first, each kind from the longest to the shortest.
    row_slots: [R + 1]; row r has slots[row_slots[r]] up to slots[row_slots[r + 1]], none if it is padding.
    slots: [S].
    """

    tiling: Tiling
    data: Tensor
    counts: Tensor
    items: Tensor
    row_slots: Tensor
    slots: Tensor

    @classmethod
    def empty(
        cls,
        tiling: Tiling,
        *,
        rows: int,
        items: int,
        slots: int,
        device: torch.device | str = "cpu",
        pin_memory: bool = False,
    ) -> AttentionWork:
        """An empty list (every count is 0), to be planned into or copied to. `work_capacity` says what is enough."""
        size = cls.size(rows=rows, items=items, slots=slots)
        data = torch.zeros(size, dtype=torch.int32, device=device, pin_memory=pin_memory)
        return cls.over(data, tiling, rows=rows, items=items, slots=slots)

    @staticmethod
    def size(*, rows: int, items: int, slots: int) -> int:
        """int32 that a list of this capacity takes."""
        return COUNTS + items * FIELDS + slots + rows + 1

    @classmethod
    def over(cls, data: Tensor, tiling: Tiling, *, rows: int, items: int, slots: int) -> AttentionWork:
        """The list that `data` int32 [size] holds, which begins at a multiple of 32 bytes."""
        counts, flat_items, slot_list, row_slots = data.split([COUNTS, items * FIELDS, slots, rows + 1])
        return cls(tiling, data, counts[:3], flat_items.view(items, FIELDS), row_slots, slot_list)

    def to(self, device: torch.device | str) -> AttentionWork:
        """A list of the same capacity on `device`, with the same contents."""
        sizes = dict(rows=len(self.row_slots) - 1, items=len(self.items), slots=len(self.slots))
        copy = self.empty(self.tiling, **sizes, device=device)
        copy.copy_(self)
        return copy

    def copy_(self, other: AttentionWork) -> None:
        """Take over a list of the same capacity, in one copy; asynchronous where `other` is in pinned memory."""
        self.data.copy_(other.data, non_blocking=True)


def work_capacity(tiling: Tiling, *, max_nodes: int, row_nodes: int) -> tuple[int, int]:
    """Items and slots that are enough for any step.

    Args:
        tiling: as planned with.
        max_nodes: nodes of a step, at most.
        row_nodes: nodes above a row, summed over the rows of a step, at most: max_rows times the depth of the tree.

    A node of L keys is cut into at most 1 + L / piece pieces, and the pieces that all nodes together have beyond one
    each are at most programs / kv_heads of each kind, since a piece is no shorter than its share of the work.
    """
    wide, narrow = tiling.wide_programs // tiling.kv_heads, tiling.narrow_programs // tiling.kv_heads
    items = max_nodes + row_nodes // tiling.wide_rows + wide + narrow
    slots = row_nodes + wide * tiling.wide_rows + narrow * tiling.narrow_rows
    return items, -(-slots // ALIGNMENT) * ALIGNMENT


def workspace_size(work: AttentionWork, heads: int, head_dim: int) -> int:
    """Elements of float32 that the partial results of a list of this capacity take: a sum, a top and a total a head."""
    return work.slots.shape[0] * heads * (head_dim + 2)


def plan_attention_work(tree: Tree, work: AttentionWork, *, block_size: int, backend: str = "auto") -> None:
    """Write the work list of a step into `work`, whose rows may be more than the step's: those are padding.

    Args:
        tree: on the CPU. Of `block_table` only the shape is looked at.
        work: on the CPU; pinned memory or not.
        block_size: tokens of a block of the cache.
        backend: "auto", "cpu" (C++) or "reference" (Python).

    Raises:
        ValueError: a node is out of range, or the list does not fit; nothing has been written then.
    """
    assert work.data.device.type == tree.node_length.device.type == "cpu", "a work list is planned on the host"
    tables, blocks_per_table = tree.block_table.shape
    if resolve(backend, "cpu", AVAILABLE) == "reference":
        reference.plan_attention_work(tree, work, tables=tables, max_length=blocks_per_table * block_size)
        return
    t = work.tiling
    extension().plan_attention_work(
        tree.node_length.shape[0], tree.node_row_begin.data_ptr(), tree.node_row_end.data_ptr(),
        tree.node_table.data_ptr(), tree.node_length.data_ptr(), tree.node_start.data_ptr(),
        tables, blocks_per_table * block_size,
        t.kv_heads, t.narrow_rows, t.wide_rows, t.narrow_programs, t.wide_programs, t.quantum,
        work.counts.data_ptr(), work.items.data_ptr(), work.items.shape[0],
        work.row_slots.data_ptr(), work.row_slots.shape[0] - 1, work.slots.data_ptr(), work.slots.shape[0],
    )  # fmt: skip


def planned_work(tree: Tree, tiling: Tiling, *, rows: int, block_size: int) -> AttentionWork:
    """The work list of a tree on any device, on the device. Copies the node arrays to the host: not for every layer."""
    names = ("node_row_begin", "node_row_end", "node_table", "node_length", "node_start")
    columns = torch.stack([getattr(tree, name) for name in names]).cpu()
    on_host = dataclasses.replace(tree, **dict(zip(names, columns)))
    row_nodes = int((on_host.node_row_end - on_host.node_row_begin).clamp_min(0).sum())
    items, slots = work_capacity(tiling, max_nodes=columns.shape[1], row_nodes=row_nodes)
    work = AttentionWork.empty(tiling, rows=rows, items=items, slots=slots)
    plan_attention_work(on_host, work, block_size=block_size)
    return work.to(tree.block_table.device)
