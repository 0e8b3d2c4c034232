"""tree_attention in Triton against the plain reference: in the interpreter without a GPU, compiled with one.

The interpreter costs a second a step of a program, however little it does: few rows and few keys, tiles cut small.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trees import Case, expected, in_plain_pytorch, ints, make_case, one_group

from mstar_kernels.attention_work import AttentionWork, planned_work, work_capacity, workspace_size
from mstar_kernels.tree_attention import Tree, tree_attention
from mstar_kernels.tree_attention_tiles import tiling_of

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FORMS = ["interpreted"] if INTERPRETED else [pytest.param("cuda", marks=ON_CUDA)]
DEVICE = {"interpreted": "cpu", "cuda": "cuda"}
BF16, FP16 = torch.bfloat16, torch.float16


def plan(form: str, case: Case, rows: int = 0, **changes: int) -> AttentionWork:
    """A work list of the case, with room for `rows`; `changes` to its tiling: programs, quantum."""
    (_, heads, head_dim), (_, kv_heads, block_size, _) = case.q.shape, case.k_cache.shape
    shapes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, q_dtype=case.q.dtype, kv_dtype=case.k_cache.dtype)
    tiling = dataclasses.replace(tiling_of(**shapes, device=DEVICE[form]), **changes)
    tree = case.to(DEVICE[form]).tree
    return planned_work(tree, tiling, rows=max(rows, len(case.q)), block_size=block_size)


def run(form: str, case: Case, **options) -> torch.Tensor:
    options.setdefault("scale", case.q.shape[2] ** -0.5)
    c = case.to(DEVICE[form])
    return tree_attention(c.q, c.k_cache, c.v_cache, c.tree, c.positions, backend="triton", **options).cpu()


def assert_matches(form: str, case: Case, work: AttentionWork | None = None, **options) -> None:
    found = run(form, case, work=work, **options)
    torch.testing.assert_close(found.double(), expected(case, **options), rtol=1e-5, atol=1e-5)


def assert_as_exact_as_pytorch(form: str, case: Case, **options) -> None:
    """At most twice its error; the interpreter cuts bfloat16 off, where a GPU rounds: twice as much again."""
    factor = 4 if form == "interpreted" and case.q.dtype == BF16 else 2
    truth = expected(case, **options)
    ours = (run(form, case, **options).double() - truth).abs()
    plain = (in_plain_pytorch(case, options.get("softcap")).double() - truth).abs()
    assert ours.max() <= factor * plain.max()
    assert ours.mean() <= factor * plain.mean()


# ---- against the reference


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "head_dim, gqa, block_size, dtype",
    [
        (64, 1, 16, BF16), (64, 8, 1, FP16), (80, 7, 16, FP16), (96, 2, 16, BF16),
        (128, 7, 16, BF16), (128, 17, 4, FP16), (256, 2, 32, BF16), (256, 1, 16, FP16),
    ],
)  # fmt: skip
def test_error_at_most_twice_that_of_pytorch(form: str, head_dim: int, gqa: int, block_size: int, dtype) -> None:
    case = make_case(head_dim + gqa, branching=2, gqa=gqa, head_dim=head_dim, block_size=block_size, leaf_tokens=70)
    assert_as_exact_as_pytorch(form, case.to(dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, softcap", [(BF16, 20.0), (FP16, 2.0)])
def test_error_with_a_soft_cap(form: str, dtype: torch.dtype, softcap: float) -> None:
    case = make_case(4, branching=2, gqa=7, head_dim=64, block_size=16, leaf_tokens=40, magnitude=2.0)
    assert_as_exact_as_pytorch(form, case.to(dtype), softcap=softcap)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "head_dim, gqa, block_size, kv_heads", [(1, 1, 1, 1), (20, 3, 5, 2), (64, 2, 16, 1), (80, 7, 4, 3), (130, 8, 2, 2)]
)
def test_in_full_precision(form: str, head_dim: int, gqa: int, block_size: int, kv_heads: int) -> None:
    shape = dict(gqa=gqa, head_dim=head_dim, block_size=block_size, kv_heads=kv_heads)
    assert_matches(form, make_case(head_dim, depth=3, branching=2, **shape))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{"sliding_window": 5}, {"softcap": 3.0}, {"sliding_window": 40, "softcap": 30.0}])
@pytest.mark.parametrize("seed", [0, 1])
def test_window_and_softcap(form: str, options: dict, seed: int) -> None:
    case = make_case(seed, branching=2, shared_blocks=5, block_size=8, leaf_tokens=30, magnitude=3.0)
    assert_matches(form, case, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, narrow, wide", [(torch.float32, 3, 30), (torch.float32, 60, 2), (BF16, 3, 30)])
@pytest.mark.parametrize("window", [None, 50])
def test_nodes_cut_into_pieces_and_tiles(form: str, dtype: torch.dtype, narrow: int, wide: int, window) -> None:
    rows = 20 if dtype == BF16 else 5  # more than a wide tile holds
    case = one_group(rows, 80, [(9 * row) % 40 for row in range(rows)], head_dim=24, gqa=7).to(dtype)
    work = plan(form, case, quantum=16, narrow_programs=narrow, wide_programs=wide)
    wide_items, narrow_items, _ = work.counts.tolist()
    tiles = -(-rows // work.tiling.wide_rows)
    assert tiles > 1 and (wide_items > tiles if wide > narrow else narrow_items > rows)
    tolerance = 2e-2 if dtype == BF16 else 1e-5
    found = run(form, case, work=work, sliding_window=window)
    truth = expected(case, sliding_window=window)
    torch.testing.assert_close(found.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_many_partial_results_of_a_row(form: str) -> None:
    case = one_group(rows=3, shared=144, leaf_tokens=[0, 3, 16], head_dim=16, gqa=3)
    case = dataclasses.replace(case, q=case.q * 3)
    work = plan(form, case, quantum=16, narrow_programs=60)
    assert work.row_slots.diff()[:3].tolist() == [9, 10, 10]  # more than a program of the merge loads at once
    for options in ({}, {"sliding_window": 100}):
        assert_matches(form, case, work, **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_window_may_hide_pieces_from_some_rows_only(form: str) -> None:
    case = one_group(rows=3, shared=64, leaf_tokens=[1, 8, 40], head_dim=16)
    for window in (1, 10, 48):
        assert_matches(form, case, plan(form, case, quantum=16, wide_programs=30), sliding_window=window)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("q_dtype, kv_dtype", [(torch.float32, BF16), (BF16, torch.float32), (FP16, BF16)])
def test_queries_and_cache_may_differ_in_dtype(form: str, q_dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    case = dataclasses.replace(make_case(5, branching=2).to(kv_dtype), q=make_case(5, branching=2).q.to(q_dtype))
    found = run(form, case)
    assert found.dtype == q_dtype
    torch.testing.assert_close(found.double(), expected(case), rtol=4e-3, atol=4e-3)


# ---- hostile values


@pytest.mark.parametrize("form", FORMS)
def test_padding_rows_and_stale_memory(form: str) -> None:
    case = make_case(2, branching=2, gqa=3)  # blocks that belong to nobody hold NaN
    rows, padding = len(case.q), 3
    padded = dataclasses.replace(
        case,
        q=torch.cat([case.q, torch.full((padding, *case.q.shape[1:]), math.nan)]),
        positions=torch.cat([case.positions, ints([-1] * padding)]),
    )
    work = plan(form, case, rows=rows + 5)
    workspace = torch.full((workspace_size(work, *case.q.shape[1:]) + 1,), math.nan, device=DEVICE[form])
    for options in ({}, {"sliding_window": 6}):
        found = run(form, padded, work=work, workspace=workspace, checked=True, **options)
        torch.testing.assert_close(found[:rows].double(), expected(case, **options), rtol=1e-5, atol=1e-5)
        assert torch.equal(found[rows:], torch.zeros(padding, *case.q.shape[1:]))
    assert workspace[-1].isnan()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_sees_no_key_gets_zeros(form: str) -> None:
    case = one_group(rows=2, shared=0, leaf_tokens=[0, 3], head_dim=8)
    out = run(form, case)
    assert torch.equal(out[0], torch.zeros_like(out[0])) and out[1].abs().sum() > 0
    far = dataclasses.replace(case, positions=case.positions + 1000)
    assert torch.equal(run(form, far, sliding_window=5), torch.zeros_like(out))


@pytest.mark.parametrize("form", FORMS)
def test_extreme_values(form: str) -> None:
    case = one_group(rows=3, shared=32, leaf_tokens=[0, 5, 17], head_dim=16)
    assert_matches(form, dataclasses.replace(case, q=torch.zeros_like(case.q)))  # the mean of the values
    sharp = dataclasses.replace(case, q=case.q * 1e4)  # one key takes all
    assert_matches(form, sharp)
    huge = dataclasses.replace(case, q=case.q.abs() * -1e18, k_cache=case.k_cache.abs() * 1e18)
    assert torch.isfinite(run(form, huge)).all()  # logits near -1e37
    large = dataclasses.replace(sharp, v_cache=case.v_cache * 1e30)
    found, truth = run(form, large, softcap=50.0).double(), expected(large, softcap=50.0)
    torch.testing.assert_close(found / 1e30, truth / 1e30, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_stays_in_the_rows_that_see_it(form: str) -> None:
    case = one_group(rows=2, shared=16, leaf_tokens=[3, 3], head_dim=8)
    case.v_cache[int(case.tree.block_table[1, 0]), :, 1] = math.nan
    out = run(form, case)
    assert out[0].isnan().all() and torch.isfinite(out[1]).all()


# ---- calls


@pytest.mark.parametrize("form", FORMS)
def test_queries_may_be_a_view(form: str) -> None:
    case = make_case(3, branching=2)
    for view in (torch.stack([case.q, -case.q], dim=1)[:, 0], torch.stack([case.q, -case.q], dim=3)[..., 0]):
        assert_matches(form, dataclasses.replace(case, q=view))


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form: str) -> None:
    case = one_group(rows=1, shared=0, leaf_tokens=[1], head_dim=8)
    nothing = ints([])
    empty = dataclasses.replace(case, q=case.q[:0], tree=Tree(*[nothing] * 5, case.tree.block_table), positions=nothing)
    assert run(form, empty).shape == (0, 4, 8)


@pytest.mark.parametrize("form", FORMS)
def test_unfit_work_and_shapes_are_refused(form: str) -> None:
    case = make_case(2)
    work = plan(form, case)
    other = plan(form, dataclasses.replace(case, q=case.q[:, :2]))
    small = torch.zeros(workspace_size(work, *case.q.shape[1:]) - 1, device=DEVICE[form])
    few_rows = AttentionWork.empty(work.tiling, rows=len(case.q) - 1, items=9, slots=8, device=DEVICE[form])
    for message, changes in [
        ("narrow_rows=16; expected 8", {"work": other}),
        (f"work is of {len(case.q) - 1} rows, q of {len(case.q)}", {"work": few_rows}),
        ("expected at least", {"work": work, "workspace": small}),
        ("float32 vector", {"work": work, "workspace": small.half()}),
    ]:
        with pytest.raises(ValueError, match=message):
            run(form, case, **changes)
    wide = make_case(2, head_dim=257, depth=1, branching=1)
    with pytest.raises(ValueError, match=r"D=257; allowed with backend='triton': 1 to 256"):
        run(form, wide)


@pytest.mark.parametrize("form", FORMS)
def test_one_work_list_serves_step_after_step(form: str) -> None:
    cases = [make_case(seed, branching=2) for seed in (6, 7)]
    tiling = plan(form, cases[0], quantum=4).tiling
    items, slots = work_capacity(tiling, max_nodes=40, row_nodes=80)
    kept = AttentionWork.empty(tiling, rows=20, items=items, slots=slots, device=DEVICE[form])
    workspace = torch.zeros(workspace_size(kept, *cases[0].q.shape[1:]), device=DEVICE[form])
    for case in [*cases, cases[0]]:
        fresh = AttentionWork.empty(tiling, rows=20, items=items, slots=slots)
        planned = plan(form, case, rows=20, quantum=4)
        for name in ("counts", "row_slots"):
            getattr(fresh, name).copy_(getattr(planned, name))
        fresh.items[: len(planned.items)] = planned.items.cpu()
        fresh.slots[: len(planned.slots)] = planned.slots.cpu()
        kept.copy_(fresh)
        found = run(form, case, work=kept, workspace=workspace, checked=True)
        torch.testing.assert_close(found.double(), expected(case), rtol=1e-5, atol=1e-5)


# ---- Triton without a GPU


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
