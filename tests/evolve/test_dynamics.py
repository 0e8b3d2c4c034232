"""Dynamics: estimators against brute force, intervals that hold what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.evolve import dynamics
from mstar_engine.types import Group, Problem, Response


def make_group(correct, name="p", text=None, length=2, reason="stop") -> Group:
    responses = tuple(
        Response(
            sample=sample,
            token_ids=np.zeros(length, np.int32),
            text=text or str(sample),
            logprobs=np.zeros(length, np.float32),
            scaled_logprobs=np.zeros(length, np.float32),
            filtered_logprobs=np.zeros(length, np.float32),
            entropy=np.full(length, 0.5, np.float32),
            finish_reason=reason,
            temperature=1.0,
            correct=value,
        )
        for sample, value in enumerate(correct)
    )
    return Group(problem=Problem(id=name, question="?", gold="1"), responses=responses, prompt_length=1)


ROWS = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=6)
)


@given(ROWS, st.data())
@settings(deadline=None)
def test_unbiased_pass_at_k_is_the_mean_over_subsets(rows, data):
    k = data.draw(st.integers(1, len(rows[0])))
    brute = np.mean([np.mean([any(some) for some in itertools.combinations(row, k)]) for row in rows])
    estimate = dynamics.unbiased_pass_at_k([make_group(row) for row in rows], k)
    assert estimate.value == pytest.approx(brute)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1 and estimate.items == len(rows)


@given(ROWS)
@settings(deadline=None)
def test_pass_at_k_rises_with_k_and_ends_at_any(rows):
    groups = [make_group(row) for row in rows]
    values = [dynamics.pass_at_k(groups, k).value for k in range(1, len(rows[0]) + 1)]
    assert values == sorted(values)
    assert values[0] == dynamics.greedy_accuracy(groups).value
    assert values[-1] == pytest.approx(np.mean([any(row) for row in rows]))
    assert dynamics.unbiased_pass_at_k(groups, len(rows[0])).value == pytest.approx(values[-1])


def test_unbiased_is_safe_for_large_n():
    n, c, k = 10**6, 3, 1000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert dynamics._unbiased(n, c, k) == pytest.approx(exact, rel=1e-9)
    assert dynamics._unbiased(n, 0, k) == 0.0 and dynamics._unbiased(n, n, 1) == 1.0


@given(st.integers(1, 10**6), st.data())
@settings(deadline=None)
def test_wilson_holds_the_share(items, data):
    successes = data.draw(st.integers(0, items))
    estimate = dynamics.wilson(successes, items)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    mirrored = dynamics.wilson(items - successes, items)
    assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-9)


def test_wilson_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, items, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        estimate = dynamics.wilson(successes, items)
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_bootstrap_agrees_with_resampling_the_problems():
    values = np.random.default_rng(1).integers(0, 9, 200) / 8
    estimate = dynamics.bootstrap(values, seed=2, resamples=20000)
    rng = np.random.default_rng(3)
    means = np.array([rng.choice(values, 200).mean() for _ in range(20000)])
    # Quantiles of 20000 resamples have a standard error below 0.001 here: 5 of them.
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=0.005)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=0.005)
    assert dynamics.bootstrap(values, seed=2) == dynamics.bootstrap(values[::-1], seed=2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_bootstrap_holds_the_mean(values):
    estimate = dynamics.bootstrap(values)
    assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12


def test_bootstrap_of_nothing_but_successes_is_wilson():
    assert dynamics.bootstrap([1.0] * 10) == dynamics.wilson(10, 10)
    assert dynamics.bootstrap([0.0] * 10) == dynamics.wilson(0, 10)


def test_measure():
    groups = [
        make_group([True, True]),
        make_group([False, True], "q"),
        make_group([False, False], "r", "same", 5, "length"),
    ]
    result = dynamics.measure(groups)
    assert (result.problems, result.responses) == (3, 6)
    assert result.accuracy.value == pytest.approx(0.5)
    assert (result.solved_none, result.solved_some, result.solved_all) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert result.mean_length == pytest.approx(3.0) and result.mean_entropy == pytest.approx(0.5)
    assert result.distinct == pytest.approx((1 + 1 + 0.5) / 3) and result.finished == pytest.approx(2 / 3)
    assert result.selected == 0


def test_refusals_name_the_problem():
    with pytest.raises(ValueError, match="no groups"):
        dynamics.greedy_accuracy([])
    with pytest.raises(ValueError, match="problem q: no responses"):
        dynamics.measure([make_group([True]), make_group([], "q")])
    with pytest.raises(ValueError, match="problem q, sample 1: not judged"):
        dynamics.greedy_accuracy([make_group([True, None], "q")])
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k}; allowed: 1 to 2, the responses of problem p"):
            dynamics.pass_at_k([make_group([True, True])], k)
    with pytest.raises(ValueError, match="successes=3 of items=2"):
        dynamics.wilson(3, 2)
    with pytest.raises(ValueError, match="no values"):
        dynamics.bootstrap([])
