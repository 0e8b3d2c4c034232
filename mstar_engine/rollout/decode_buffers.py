"""The arrays of a decode plan at fixed addresses on the device, filled by one transfer a step.

A captured graph reads the same memory at every replay, so a step is padded to a bucket of rows: padding rows feed token
0 into no slot, lie below no node and draw greedily from what comes out, which nobody reads. The host side is pinned and
double: a step planned ahead is written while the transfer of the step before it may still be under way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mstar_kernels.attention_work import AttentionWork, Tiling, plan_attention_work, work_capacity
from mstar_kernels.tree_attention import Tree

INT, FLOAT, LONG = torch.int32, torch.float32, torch.int64
ROW_FIELDS = {
    "seed": LONG, "problem": LONG, "token_ids": LONG, "token_rows": LONG, "rotary": LONG, "positions": INT,
    "slots": INT, "sample": INT, "position": INT, "top_k": INT, "temperature": FLOAT, "top_p": FLOAT, "min_p": FLOAT,
}  # fmt: skip
"""Each of the type in which a step takes it, so that none is converted there."""
NODE_FIELDS = ("node_row_begin", "node_row_end", "node_length", "node_start")
PADDING = {"token_rows": -1, "slots": -1, "top_p": 1.0}
"""What padding rows hold; 0 in the rest."""
SIDES = 2
ALIGNMENT = 32
"""Elements of 4 bytes: every array begins at a multiple of 128 bytes."""
FLAT, HELD = 2, 64
"""Nodes above a row, at most: a prompt and the row's own; where stems are held, those between their forks too. Trees
that are deeper get buffers of their depth."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a step is padded to: rows, nodes, and columns of the block table; and whether a row has top-k, top-p or
    min-p. One graph is captured for each."""

    rows: int
    nodes: int
    columns: int
    filtered: bool


class DecodeBuffers:
    """Buffers for decode plans of at most these rows and nodes, and this many blocks of `block_size` tokens a node.

    `tiling`: of the Triton form of tree attention, whose work list `work` is planned and sent with the plan. None:
    another form, and no list. `depth`: nodes above a row, at most.
    """

    def __init__(
        self,
        max_rows: int,
        max_nodes: int,
        table_width: int,
        block_size: int,
        device: torch.device,
        tiling: Tiling | None = None,
        depth: int = FLAT,
    ) -> None:
        self.block_size = block_size
        self.depth = depth
        self.max_rows, self.max_nodes, self.table_width = max_rows, max_nodes, table_width
        sizes = {name: self.max_rows * (2 if dtype is LONG else 1) for name, dtype in ROW_FIELDS.items()}
        sizes |= dict.fromkeys(NODE_FIELDS, self.max_nodes)
        self._begin, end = {}, 0
        for name, size in sizes.items():
            self._begin[name] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._capacity: dict[str, int] = {}
        if tiling is not None:
            items, slots = work_capacity(tiling, max_nodes=max_nodes, row_nodes=depth * max_rows)
            self._capacity = {"rows": max_rows, "items": items, "slots": slots}
            self._begin["work"] = end
            end += -(-AttentionWork.size(**self._capacity) // ALIGNMENT) * ALIGNMENT
        self._table_begin = end
        end += self.max_nodes * self.table_width
        self._hosts = [torch.zeros(end, dtype=INT, pin_memory=device.type == "cuda") for _ in range(SIDES)]
        self._arrays = [
            {name: self._row_field(host, name, max_rows).numpy() for name in ROW_FIELDS}
            | {name: self._ints(host, name, max_nodes).numpy() for name in NODE_FIELDS}
            for host in self._hosts
        ]
        self._device = torch.zeros(end, dtype=INT, device=device)
        devices = {self._device.device, self._hosts[0].device}
        self._node_tables = {at: torch.arange(max_nodes, dtype=INT, device=at) for at in devices}
        self._works = [self._work(host, tiling) for host in self._hosts]
        self.work = self._work(self._device, tiling)

    def send(self, plan: Any, side: int, rotary: np.ndarray) -> Bucket:
        """Write a decode plan into host side `side`, start its transfer, and say what it was padded to.

        `rotary` int [rows] is what the model is given as positions. The transfer of the plan that was written into
        this side before must be over.
        """
        arrays = self._arrays[side]
        rows, nodes = plan.num_rows, plan.num_nodes
        bucket = self._bucket(plan)
        for name in ROW_FIELDS:
            array = arrays[name]
            array[:rows] = rotary if name == "rotary" else getattr(plan, name)[:rows]
            array[rows : bucket.rows] = PADDING.get(name, 0)
        for name in NODE_FIELDS:
            arrays[name][:nodes] = getattr(plan, name)[:nodes]
            arrays[name][nodes : bucket.nodes] = 0
        begin, end = self._table_begin, self._table_begin + bucket.nodes * bucket.columns
        table = self._hosts[side][begin:end].numpy().reshape(bucket.nodes, bucket.columns)
        np.take(plan.block_table[:, : bucket.columns], plan.node_table[:nodes], axis=0, out=table[:nodes], mode="clip")
        if self._works[side] is not None:
            tree = self._tree(self._hosts[side], replace(bucket, nodes=nodes))
            plan_attention_work(tree, self._works[side], block_size=self.block_size)
        self._device[:end].copy_(self._hosts[side][:end], non_blocking=True)
        return bucket

    def rows(self, bucket: Bucket) -> dict[str, Tensor]:
        """The row arrays on the device, each [bucket.rows]; seed and problem int64, filters and temperature float32."""
        return {name: self._row_field(self._device, name, bucket.rows) for name in ROW_FIELDS}

    def tree(self, bucket: Bucket) -> Tree:
        """The nodes on the device. The block table has a row a node, in their order."""
        return self._tree(self._device, bucket)

    def host_rows(self, side: int) -> dict[str, np.ndarray]:
        """The row arrays of the plan last written into a side: to name a row in an error."""
        return {name: self._arrays[side][name] for name in ROW_FIELDS}

    def _bucket(self, plan: Any) -> Bucket:
        nodes, padded = plan.num_nodes, min(row_bucket(plan.num_rows), self.max_rows)
        longest = int(plan.node_length[:nodes].max())
        columns = min(power_of_2(-(-longest // self.block_size)), self.table_width)
        # Without held stems there is at most one shared node a row.
        nodes = 2 * padded if nodes <= 2 * padded else self.max_nodes
        top_k, top_p, min_p = (getattr(plan, name)[: plan.num_rows] for name in ("top_k", "top_p", "min_p"))
        filtered = bool(top_k.any() or (top_p < 1).any() or min_p.any())
        return Bucket(padded, nodes, columns, filtered)

    def _tree(self, buffer: Tensor, bucket: Bucket) -> Tree:
        begin, size = self._table_begin, bucket.nodes * bucket.columns
        return Tree(
            **{name: self._ints(buffer, name, bucket.nodes) for name in NODE_FIELDS},
            node_table=self._node_tables[buffer.device][: bucket.nodes],
            block_table=buffer[begin : begin + size].view(bucket.nodes, bucket.columns),
        )

    def _work(self, buffer: Tensor, tiling: Tiling | None) -> AttentionWork | None:
        if tiling is None:
            return None
        data = self._ints(buffer, "work", AttentionWork.size(**self._capacity))
        return AttentionWork.over(data, tiling, **self._capacity)

    def _ints(self, buffer: Tensor, name: str, count: int) -> Tensor:
        return buffer[self._begin[name] : self._begin[name] + count]

    def _row_field(self, buffer: Tensor, name: str, count: int) -> Tensor:
        dtype = ROW_FIELDS[name]
        return self._ints(buffer, name, count * (2 if dtype is LONG else 1)).view(dtype)


def row_bucket(rows: int) -> int:
    """The rows a step is padded to: a power of two up to 16, a multiple of 16 up to 128, then of 32."""
    if rows <= 16:
        return power_of_2(rows)
    unit = 16 if rows <= 128 else 32
    return -(-rows // unit) * unit


def power_of_2(count: int) -> int:
    """The least power of two that is not below `count`, at least 1."""
    return 1 << max(count - 1, 0).bit_length()
