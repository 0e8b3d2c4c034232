"""step_rewards: every form against the plain reference; ties, extremes, order of arithmetic."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards import FORMS, INTERPRETED, RUNNABLE, Case, ints, make_case, run

from mstar_kernels import reference
from mstar_kernels.dispatch import extension
from mstar_kernels.step_rewards import REDUCTIONS, StepRewards, step_rewards

torch.set_num_threads(1)

HALVES = (torch.bfloat16, torch.float16)
needs_extension = pytest.mark.skipif(extension() is None, reason="the C++ extension is not built")


def expected(case: Case, reduction: str = "min") -> StepRewards:
    """The reference in float64, rounded."""
    c = case.to(torch.float64)
    scores, reduced, weakest = reference.step_rewards(
        c.hidden, c.label_rows, c.bias, c.step_positions, c.response_steps, head=c.head, reduction=reduction
    )
    return StepRewards(scores.float(), reduced.float(), weakest)


def assert_matches(form: str, case: Case, reduction: str = "min") -> None:
    found, wanted = run(form, case, reduction), expected(case, reduction)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.reduced, wanted.reduced, rtol=1e-5, atol=2e-6)
    assert found.weakest.dtype == torch.int32 and torch.equal(found.weakest, wanted.weakest)


# ---- against the reference


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [1, 7, 96, 100, 3584])
@pytest.mark.parametrize(
    "lengths", [[1], [1] * 33, [33], [1, 70, 2, 5, 1]], ids=["one", "of one step", "of 33", "mixed"]
)
def test_odd_sizes(form: str, dim: int, lengths: list[int]) -> None:
    assert_matches(form, make_case(dim, lengths))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("labels, bias", [(1, True), (2, False), (3, True)])
def test_heads_and_reductions(form: str, reduction: str, labels: int, bias: bool) -> None:
    lengths = [1, 70, 2] + 31 * [1] + [5, 1]  # more responses than a Triton program reduces
    assert_matches(form, make_case(60, lengths, labels, bias), reduction)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels, bias", [(1, False), (2, True), (4, False), (7, True)])
def test_label_rows_and_bias(form: str, labels: int, bias: bool) -> None:
    assert_matches(form, make_case(33, [4, 9], labels, bias))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [7, 3584])
def test_error_at_most_twice_that_of_pytorch_in_the_same_precision(form: str, dtype: torch.dtype, dim: int) -> None:
    for labels in (1, 2):
        case = make_case(dim, [1, 70, 2], labels).to(dtype)
        truth, ours = expected(case).scores, run(form, case).scores
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=2e-6)  # accumulated in float32
        logits = case.hidden[case.step_positions.long()] @ case.label_rows.T
        plain = (logits.sigmoid() if labels == 1 else logits.softmax(1))[:, 0].float()
        assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max()
        assert (ours - truth).abs().mean() <= 2 * (plain - truth).abs().mean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", HALVES)
def test_label_rows_may_stay_in_float32(form: str, dtype: torch.dtype) -> None:
    case = make_case(100, [3, 8])
    assert_matches(form, dataclasses.replace(case, hidden=case.hidden.to(dtype)))


# ---- values


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_a_known_example(form: str) -> None:
    hidden = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    label_rows = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    case = Case(hidden, label_rows, ints(1, 0, 2, 3), ints(0, 3, 4))
    for reduction, wanted in [("min", 0.2), ("mean", 1.45 / 3), ("product", 0.075), ("last", 0.2)]:
        found = run(form, case, reduction)
        torch.testing.assert_close(found.scores, torch.tensor([0.75, 0.5, 0.2, 3 / 7]))
        torch.testing.assert_close(found.reduced, torch.tensor([wanted, 3 / 7]))
        assert found.weakest.tolist() == [2, 0]


def two_valued(dtype: torch.dtype = torch.float32, size: float = 1.0) -> Case:
    """Token 0 scores one half; tokens 1 and 2 have a logit of `size` more, or less, than the other label's."""
    hidden = torch.tensor([[0.0], [size], [-size]], dtype=dtype)
    return Case(hidden, torch.tensor([[1.0], [0.0]], dtype=dtype), ints(0), ints(0, 1))


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_a_tie_goes_to_the_first_step(form: str) -> None:
    positions = torch.ones(150, dtype=torch.int32)
    positions[[0 + 41, 0 + 69, 70 + 5, 70 + 37]] = 0
    case = dataclasses.replace(two_valued(), step_positions=positions, response_steps=ints(0, 70, 120, 149, 150))
    assert run(form, case).weakest.tolist() == [41, 5, 0, 0]


@pytest.mark.parametrize("form", ["reference", *FORMS])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_extreme_logits_are_exactly_zero_or_one(form: str, dtype: torch.dtype) -> None:
    case = two_valued(dtype, size=1e4)
    case = dataclasses.replace(case, step_positions=ints(1, 2, 0), response_steps=ints(0, 3))
    assert run(form, case).scores.tolist() == [1.0, 0.0, 0.5]
    assert run(form, dataclasses.replace(case, label_rows=case.label_rows[:1])).scores.tolist() == [1.0, 0.0, 0.5]
    assert run(form, case, "product").reduced.tolist() == [0.0]


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_huge_logits_of_one_sign(form: str) -> None:
    largest = torch.finfo(torch.float32).max
    hidden, label_rows = torch.tensor([[largest], [-largest]]), torch.tensor([[1.0], [1.0], [-1.0]])
    scores = run(form, Case(hidden, label_rows, ints(0, 1), ints(0, 2))).scores
    assert scores.tolist() == [0.5, 0.0]


@needs_extension
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    dim=st.integers(1, 40),
    labels=st.integers(1, 5),
    magnitude=st.sampled_from([0.1, 3.0, 300.0]),
)
def test_properties(seed: int, lengths: list[int], dim: int, labels: int, magnitude: float) -> None:
    case = make_case(dim, lengths, labels, bias=True, seed=seed)
    case = dataclasses.replace(case, hidden=case.hidden * magnitude)
    isa = RUNNABLE[seed % len(RUNNABLE)]
    found = {reduction: run(isa, case, reduction) for reduction in REDUCTIONS}
    scores, low = found["min"].scores, found["min"].reduced
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (found["product"].reduced <= low).all() and (low <= found["last"].reduced).all()
    assert (low <= found["mean"].reduced * (1 + 1e-6)).all()
    bounds = case.response_steps[:-1]
    assert torch.equal(scores[(bounds + found["min"].weakest).long()], low)
    first = [int(part.argmin()) for part in scores.split(lengths)]
    assert found["min"].weakest.tolist() == first

    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = case.step_positions.split(lengths)
    moved = dataclasses.replace(
        case,
        step_positions=torch.cat([parts[n] for n in order]),
        response_steps=ints(*accumulate((lengths[n] for n in order), initial=0)),
    )
    for reduction in REDUCTIONS:
        permuted = run(isa, moved, reduction)
        assert torch.equal(permuted.reduced, found[reduction].reduced[order])
        assert torch.equal(permuted.weakest, found[reduction].weakest[order])
        assert torch.equal(permuted.scores, torch.cat([scores.split(lengths)[n] for n in order]))


@needs_extension
def test_the_same_bits_for_any_number_of_threads() -> None:
    case = make_case(100, [1 + n % 7 for n in range(60)])
    try:
        results = []
        for threads in (1, 2, 5):
            extension().set_num_threads(threads)
            results.append(step_rewards(**case.tensors, reduction="mean", backend="cpu"))
    finally:
        extension().set_num_threads(1)
    for result in results[1:]:
        assert torch.equal(result.scores, results[0].scores) and torch.equal(result.reduced, results[0].reduced)


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_no_responses(form: str) -> None:
    found = run(form, Case(torch.zeros(0, 4), torch.zeros(2, 4), ints(), ints(0)))
    assert found.scores.shape == found.reduced.shape == found.weakest.shape == (0,)


def test_auto_takes_the_compiled_form_and_no_gradient() -> None:
    case = make_case(16, [2, 3])
    found = step_rewards(case.hidden.requires_grad_(), *list(case.tensors.values())[1:4])
    assert not found.scores.requires_grad
    if RUNNABLE:
        assert torch.equal(found.scores, run(RUNNABLE[-1], case).scores)


# ---- Triton without a GPU


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_step_rewards*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
