"""`plan_attention_work` in plain Python: the specification of csrc/rollout/attention_work.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mstar_kernels.attention_work import AttentionWork
    from mstar_kernels.tree_attention import Tree


def plan_attention_work(tree: Tree, work: AttentionWork, *, tables: int, max_length: int) -> None:
    """See `mstar_kernels.attention_work.plan_attention_work`; `tables`, `max_length` bound node_table, node_length."""
    tiling, rows = work.tiling, len(work.row_slots) - 1
    columns = (tree.node_row_begin, tree.node_row_end, tree.node_table, tree.node_length, tree.node_start)
    nodes = list(zip(*(column.tolist() for column in columns)))
    for m, node in enumerate(nodes):
        _check(m, *node, rows=rows, tables=tables, max_length=max_length)

    is_narrow = [end - begin <= tiling.narrow_rows for begin, end, *_ in nodes]
    tile_rows = [tiling.narrow_rows if narrow else tiling.wide_rows for narrow in is_narrow]
    tiles = [-(-(end - begin) // size) for (begin, end, *_), size in zip(nodes, tile_rows)]
    total = sum(count * length * tiling.kv_heads for count, (_, _, _, length, _) in zip(tiles, nodes))

    items: tuple[list, list] = ([], [])  # wide, narrow
    row_slots: list[list[int]] = [[] for _ in range(rows)]
    slot = 0
    for m, (begin, end, table, length, start) in enumerate(nodes):
        if not (tiles[m] and length):
            continue
        programs = tiling.narrow_programs if is_narrow[m] else tiling.wide_programs
        near = max(tiling.quantum, -(-total // programs))
        pieces = max(1, (2 * length + near) // (2 * near))
        step = -(-length // (pieces * tiling.quantum)) * tiling.quantum
        for key in range(0, length, step):
            for row in range(begin, end, tile_rows[m]):
                row_end = min(row + tile_rows[m], end)
                items[is_narrow[m]].append((m, row, row_end, key, min(key + step, length), slot, table, start))
                for r in range(row, row_end):
                    row_slots[r].append(slot)
                    slot += 1
    for kind in items:
        kind.sort(key=lambda item: (item[3] - item[4]) // tiling.quantum)  # quanta, rounded up; longest first

    _refuse_above("items", len(items[0]) + len(items[1]), len(work.items))
    _refuse_above("slots", slot, len(work.slots))
    for place, item in enumerate([*items[0], *items[1]]):
        work.items[place] = torch.tensor(item, dtype=torch.int32)
    bounds = [0]
    for listed in row_slots:
        work.slots[bounds[-1] : bounds[-1] + len(listed)] = torch.tensor(listed, dtype=torch.int32)
        bounds.append(bounds[-1] + len(listed))
    work.row_slots.copy_(torch.tensor(bounds, dtype=torch.int32))
    work.counts.copy_(torch.tensor([len(items[0]), len(items[1]), slot], dtype=torch.int32))


def _check(
    m: int, begin: int, end: int, table: int, length: int, start: int, *, rows: int, tables: int, max_length: int
) -> None:
    for name, value, allowed, is_allowed in (
        ("node_row_begin", begin, f"0 to {end}", 0 <= begin <= end),
        ("node_row_end", end, f"0 to {rows}", end <= rows),
        ("node_table", table, f"0 to {tables - 1}", 0 <= table < tables),
        ("node_length", length, f"0 to {max_length}", 0 <= length <= max_length),
        ("node_start", start, "0 or more", start >= 0),
    ):
        if not is_allowed:
            raise ValueError(f"{name}[{m}]={value}; allowed: {allowed}")


def _refuse_above(name: str, needed: int, capacity: int) -> None:
    if needed > capacity:
        raise ValueError(f"attention work: {name}={needed}; allowed: at most {capacity}")
