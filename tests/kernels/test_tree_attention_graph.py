"""tree_attention inside a CUDA graph: one capture serves every step whose work list is copied in; nothing waits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from trees import Case, expected, one_group

from mstar_kernels.attention_work import AttentionWork, plan_attention_work, work_capacity, workspace_size
from mstar_kernels.tree_attention import Tree, tree_attention
from mstar_kernels.tree_attention_tiles import tiling_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ROWS = 6
WINDOWS = [None, 60]


def steps() -> list[Case]:
    """Three steps over one cache: other lengths, and fewer rows, so that the last ones are padding."""
    first = one_group(ROWS, 640, [1, 30, 0, 70, 5, 200], head_dim=64, gqa=7)
    second = one_group(ROWS, 640, [2, 31, 17, 200, 6, 0], head_dim=64, gqa=7, seed=1)
    second = dataclasses.replace(second, k_cache=first.k_cache, v_cache=first.v_cache)
    names = [field.name for field in dataclasses.fields(Tree) if field.name != "block_table"]
    fewer = dataclasses.replace(first.tree, **{name: getattr(first.tree, name)[[1, 2, 3, 0]] for name in names})
    fewer.node_row_end.clamp_(max=3)
    return [first, second, dataclasses.replace(first, tree=fewer)]


class Step:
    """The call of a bucket of ROWS rows with memory of its own, as a runner would hold it."""

    def __init__(self, case: Case) -> None:
        case = case.to(torch.bfloat16)
        self.case = case.to("cuda")
        (_, self.heads, head_dim), (_, kv_heads, self.block_size, _) = case.q.shape, case.k_cache.shape
        shapes = dict(heads=self.heads, kv_heads=kv_heads, head_dim=head_dim)
        tiling = tiling_of(**shapes, q_dtype=case.q.dtype, kv_dtype=case.k_cache.dtype, device="cuda")
        items, slots = work_capacity(tiling, max_nodes=ROWS + 1, row_nodes=2 * ROWS)
        self.planned = AttentionWork.empty(tiling, rows=ROWS, items=items, slots=slots, pin_memory=True)
        self.work = self.planned.to("cuda")
        self.workspace = torch.full((workspace_size(self.work, self.heads, head_dim),), float("nan"), device="cuda")

    def take(self, case: Case) -> None:
        plan_attention_work(case.tree, self.planned, block_size=self.block_size)
        self.work.copy_(self.planned)
        self.case.q.copy_(case.q)
        self.case.positions.copy_(case.positions)
        torch.cuda.synchronize()

    def attend(self, window: int | None) -> torch.Tensor:
        c = self.case
        return tree_attention(
            c.q, c.k_cache, c.v_cache, c.tree, c.positions, scale=0.125, sliding_window=window,
            backend="triton", checked=True, work=self.work, workspace=self.workspace,
        )  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS)
def test_one_capture_serves_every_step(window: int | None) -> None:
    step = Step(steps()[0])
    step.take(steps()[0])
    step.attend(window)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.attend(window)
    for case in [*steps(), steps()[0]]:
        step.take(case)
        out.fill_(float("nan"))
        graph.replay()
        truth = expected(case.to(torch.bfloat16), scale=0.125, sliding_window=window)
        torch.testing.assert_close(out.cpu().double(), truth, rtol=2e-2, atol=2e-2)
        assert torch.equal(out, step.attend(window))
    step.take(steps()[2])
    graph.replay()
    assert (out[3:] == 0).all()


def test_a_planned_call_waits_for_nothing() -> None:
    step = Step(steps()[0])
    step.take(steps()[0])
    step.attend(None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.attend(None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
