"""Dynamics: estimators against brute force, intervals that hold what they promise."""

import dataclasses
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


def score_group(rows, name="p", gold="1") -> Group:
    """A judged group from (answer, score, tokens)."""
    group = make_group([answer == gold for answer, _, _ in rows], name)
    scored = [
        dataclasses.replace(r, answer=answer, score=score, token_ids=np.zeros(tokens, np.int32))
        for r, (answer, score, tokens) in zip(group.responses, rows, strict=True)
    ]
    problem = dataclasses.replace(group.problem, gold=gold)
    return dataclasses.replace(group, problem=problem, responses=tuple(scored))


def test_reward_pass_at_k_by_hand():
    groups = [
        score_group([("2", 0.9, 1), ("1", 0.8, 1), ("2", 0.1, 1)]),
        score_group([("1", 0.1, 1), ("2", 0.5, 1), ("2", 0.6, 1)], "q"),
        score_group([("2", 0.5, 3), ("1", 0.5, 2), ("1", 0.2, 1)], "r"),
        score_group([("2", 0.5, 2), ("1", 0.5, 2), ("2", 0.2, 1)], "s"),
    ]
    # At 1: only r, by fewer tokens. At 2: all but q, whose correct response scores least.
    assert [dynamics.reward_pass_at_k(groups, k) for k in (1, 2, 3)] == [dynamics.wilson(n, 4) for n in (1, 3, 4)]


SCORED = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["1", "2", "3", None]), st.integers(0, 4).map(lambda i: i / 4), st.integers(1, 3)
            ),
            min_size=n,
            max_size=n,
        ),
        min_size=1,
        max_size=5,
    )
)


@given(SCORED)
@settings(deadline=None)
def test_reward_pass_at_k_lies_between_what_chance_and_an_oracle_reach(rows):
    groups = [score_group(row) for row in rows]
    n = len(rows[0])
    values = [dynamics.reward_pass_at_k(groups, k).value for k in range(1, n + 1)]
    assert values == sorted(values) and values[-1] == dynamics.pass_at_k(groups, n).value
    oracle = [score_group([(a, float(a == "1"), t) for a, _, t in row]) for row in rows]
    assert dynamics.reward_pass_at_k(oracle, 1).value == values[-1]
    # Scores that fall with the sample number rank nothing anew.
    in_order = [score_group([(a, 1 - i / 9, t) for i, (a, _, t) in enumerate(row)]) for row in rows]
    for k in range(1, n + 1):
        assert dynamics.reward_pass_at_k(in_order, k) == dynamics.pass_at_k(in_order, k)


@given(SCORED)
@settings(deadline=None)
def test_verifier_table(rows):
    groups = [score_group(row) for row in rows]
    n = len(rows[0])
    table = dynamics.verifier_table(groups, [1, n])
    assert list(table) == list(dict.fromkeys([1, n]))
    # A single response leaves nothing to decide.
    assert all(estimate == dynamics.greedy_accuracy(groups) for estimate in table[1].values())
    for rule, estimate in table[n].items():
        assert estimate == dynamics.vote_accuracy(groups, rule, n)
        assert estimate.value <= dynamics.pass_at_k(groups, n).value
    # Equal scores: the weighted vote is the majority, ties included.
    flat = [score_group([(a, 0.5, t) for a, _, t in row]) for row in rows]
    assert dynamics.vote_accuracy(flat, "weighted", n) == dynamics.vote_accuracy(flat, "majority", n)


def test_votes_by_hand():
    groups = [
        score_group([("1.", 0.1, 1), ("01", 0.1, 1), ("2", 0.3, 1), ("3", 0.4, 1)], gold="+1"),
        score_group([(None, 0.1, 1)] * 4, "q"),
    ]
    accuracy = {rule: dynamics.vote_accuracy(groups, rule, 4).value for rule in ("majority", "weighted", "best_of_n")}
    assert accuracy == {"majority": 0.5, "weighted": 0.0, "best_of_n": 0.0}
    assert dynamics.verifier_table(groups, [2])[2]["best_of_n"] == dynamics.wilson(1, 2)


def test_refusals_of_scores_and_votes():
    groups = [score_group([("1", 0.5, 1), ("2", 0.5, 1)]), score_group([("1", 0.5, 1), ("2", None, 1)], "q")]
    with pytest.raises(ValueError, match="problem q, sample 1: score=None; Reward-Pass@K"):
        dynamics.reward_pass_at_k(groups, 1)
    with pytest.raises(ValueError, match="problem q, sample 1: score=None"):
        dynamics.vote_accuracy(groups, "weighted", 2)
    assert dynamics.vote_accuracy(groups, "majority", 2).items == 2
    with pytest.raises(ValueError, match="problem p, sample 0: score=nan"):
        dynamics.reward_pass_at_k([score_group([("1", math.nan, 1)])], 1)
    with pytest.raises(ValueError, match="rule='plurality'; allowed: majority, weighted, best_of_n"):
        dynamics.vote_accuracy(groups, "plurality", 1)
    for measure in (dynamics.reward_pass_at_k, lambda g, k: dynamics.vote_accuracy(g, "majority", k)):
        for k in (0, 3):
            with pytest.raises(ValueError, match=f"k={k}; allowed: 1 to 2, the responses of problem p"):
                measure(groups, k)
        with pytest.raises(ValueError, match="no groups"):
            measure([], 1)
    unlabelled = dataclasses.replace(groups[0], problem=Problem(id="u", question="?"))
    with pytest.raises(ValueError, match="problem u: no reference answer"):
        dynamics.vote_accuracy([unlabelled], "majority", 1)


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
