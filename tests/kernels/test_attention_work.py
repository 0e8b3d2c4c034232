"""plan_attention_work: C++ against plain Python, capacities that are enough, refusals that leave a list untouched."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_case

from mstar_kernels.attention_work import (
    AttentionWork,
    Tiling,
    plan_attention_work,
    planned_work,
    work_capacity,
    workspace_size,
)
from mstar_kernels.tree_attention import Tree
from mstar_kernels.tree_attention_tiles import refusal, tiles_of, tiling_of

pytest.importorskip("mstar_kernels._C")
UNTOUCHED = -77
TILING = Tiling(kv_heads=2, narrow_rows=2, wide_rows=5, narrow_programs=12, wide_programs=6, quantum=4)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tree_of(*nodes: tuple[int, int, int]) -> Tree:
    """Nodes as (row begin, row end, length); each has a row of the block table to itself."""
    begin, end, length = (ints(*column) for column in zip(*nodes)) if nodes else (ints(),) * 3
    index = torch.arange(len(nodes), dtype=torch.int32)
    return Tree(begin, end, index, length, 10 * index, torch.zeros(len(nodes) + 1, 100, dtype=torch.int32))


def planned(tree: Tree, tiling: Tiling, backend: str, *, rows: int, items: int = 500, slots: int = 2000):
    work = AttentionWork.empty(tiling, rows=rows, items=items, slots=slots)
    work.data.fill_(UNTOUCHED)
    plan_attention_work(tree, work, block_size=16, backend=backend)
    return work


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200)), max_size=12),
    kv_heads=st.integers(1, 4),
    narrow_rows=st.integers(1, 3),
    wide_rows=st.integers(1, 9),
    programs=st.tuples(st.integers(1, 60), st.integers(1, 40)),
    quantum=st.sampled_from([1, 4, 7, 128]),
)
def test_both_forms_write_the_same(nodes, kv_heads, narrow_rows, wide_rows, programs, quantum) -> None:
    tree = tree_of(*((min(a, b), max(a, b), length) for a, b, length in nodes))
    tiling = Tiling(kv_heads, narrow_rows, wide_rows, *programs, quantum)
    items, slots = work_capacity(
        tiling, max_nodes=len(nodes), row_nodes=int((tree.node_row_end - tree.node_row_begin).sum())
    )
    fast, plain = (planned(tree, tiling, name, rows=30, items=items, slots=slots) for name in ("cpu", "reference"))
    assert torch.equal(fast.data, plain.data)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_known_example(backend: str) -> None:
    # 7 rows below 20 keys: two wide tiles, 80 units of work; 2 of 8 and 5: 26. 106 / 6 = 18 keys a wide piece, the
    # nearest is one; 106 / 12 = 9 a narrow one.
    work = planned(tree_of((0, 7, 20), (0, 2, 8), (6, 7, 5), (2, 6, 0), (3, 3, 9)), TILING, backend, rows=8)
    assert work.counts.tolist() == [2, 2, 10]
    assert work.items[:4].tolist() == [
        [0, 0, 5, 0, 20, 0, 0, 0],
        [0, 5, 7, 0, 20, 5, 0, 0],
        [1, 0, 2, 0, 8, 7, 1, 10],
        [2, 6, 7, 0, 5, 9, 2, 20],
    ]
    assert work.row_slots.tolist() == [0, 2, 4, 5, 6, 7, 8, 10, 10]  # row 7 is padding
    assert work.slots[:10].tolist() == [0, 7, 1, 8, 2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_long_node_is_cut_until_it_fills_the_device(backend: str) -> None:
    work = planned(tree_of((0, 1, 100)), TILING, backend, rows=1)
    # 200 units of work for 12 programs: pieces of about 17 keys, of whole quanta 20
    assert work.counts.tolist() == [0, 5, 5]
    assert work.items[:5, 3].tolist() == [0, 20, 40, 60, 80] and work.items[:5, 4].tolist() == [20, 40, 60, 80, 100]
    assert work.slots[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"node_row_begin": ints(-1, 0)}, r"node_row_begin\[0\]=-1; allowed: 0 to 3"),
        ({"node_row_begin": ints(0, 3)}, r"node_row_begin\[1\]=3; allowed: 0 to 2"),
        ({"node_row_end": ints(3, 5)}, r"node_row_end\[1\]=5; allowed: 0 to 4"),
        ({"node_table": ints(0, 3)}, r"node_table\[1\]=3; allowed: 0 to 2"),
        ({"node_length": ints(-1, 5)}, r"node_length\[0\]=-1; allowed: 0 to 1600"),
        ({"node_length": ints(7, 1601)}, r"node_length\[1\]=1601; allowed: 0 to 1600"),
        ({"node_start": ints(0, -1)}, r"node_start\[1\]=-1; allowed: 0 or more"),
    ],
)
def test_a_node_out_of_range_is_refused(backend: str, change: dict, message: str) -> None:
    tree = dataclasses.replace(tree_of((0, 3, 7), (0, 2, 5)), **change)
    work = AttentionWork.empty(TILING, rows=4, items=9, slots=9)
    work.data.fill_(UNTOUCHED)
    with pytest.raises(ValueError, match=message):
        plan_attention_work(tree, work, block_size=16, backend=backend)
    assert (work.data == UNTOUCHED).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("items, slots, message", [(2, 9, "items=3; .* 2"), (3, 7, "slots=8; .* 7")])
def test_a_list_that_does_not_fit_is_refused(backend: str, items: int, slots: int, message: str) -> None:
    tree = tree_of((0, 3, 7), (0, 2, 5))
    work = AttentionWork.empty(TILING, rows=4, items=items, slots=slots)
    work.data.fill_(UNTOUCHED)
    with pytest.raises(ValueError, match=message):
        plan_attention_work(tree, work, block_size=16, backend=backend)
    assert (work.data == UNTOUCHED).all()
    planned(tree, TILING, backend, rows=4, items=3, slots=8)


def test_capacity_is_enough_for_any_tree_of_a_depth() -> None:
    for seed in range(60):
        tree = make_case(seed, depth=1 + seed % 4, head_dim=2, shared_blocks=30, leaf_tokens=40).tree
        rows, nodes = int(tree.node_row_end.max()), len(tree.node_length)
        depth = max(int(((tree.node_row_begin <= r) & (r < tree.node_row_end)).sum()) for r in range(rows))
        for tiling in (TILING, dataclasses.replace(TILING, narrow_programs=500, wide_programs=300, wide_rows=3)):
            items, slots = work_capacity(tiling, max_nodes=nodes, row_nodes=rows * depth)
            planned(tree, tiling, "cpu", rows=rows, items=items, slots=slots)


def test_a_list_is_copied_whole_and_planned_anew() -> None:
    tree = make_case(1).tree
    rows = int(tree.node_row_end.max())
    work = planned_work(tree, TILING, rows=rows, block_size=4)
    other = AttentionWork.empty(TILING, rows=rows, items=len(work.items), slots=len(work.slots))
    assert (other.data == 0).all()
    other.copy_(work)
    for name in ("counts", "items", "row_slots", "slots"):
        assert torch.equal(getattr(other, name), getattr(work, name))
    assert work.counts[2] > 0 and work.slots.data_ptr() % 16 == 0 and len(work.slots) % 4 == 0
    assert workspace_size(work, 6, 16) == len(work.slots) * 6 * 18


def test_tiles_hold_whole_rows() -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    narrow, wide = tiles_of(7, 128, bf16, bf16)
    assert (narrow.lanes, wide.lanes) == (16, 128)
    tiling = tiling_of(heads=28, kv_heads=4, head_dim=128, q_dtype=bf16, kv_dtype=bf16, device="cpu")
    assert (tiling.narrow_rows, tiling.wide_rows) == (2, 18)
    for group in (1, 2, 7, 8, 16, 17, 64):
        for head_dim in (1, 64, 80, 96, 128, 256):
            for kv_dtype in (bf16, fp32):
                for tile in tiles_of(group, head_dim, bf16, kv_dtype):
                    assert tile.lanes >= group
    assert refusal(1, 256) is None and "D=257" in refusal(1, 257)
    assert refusal(128, 128) is None and "H/Hkv=129" in refusal(129, 128) and "H/Hkv=65" in refusal(65, 256)
