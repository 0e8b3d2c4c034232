"""Dynamics, metric by metric: against examples by hand and brute force."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_groups import SCORED, group_of, make_group, make_response, score_group

from mstar_engine.evolve import dynamics
from mstar_engine.evolve.intervals import wilson
from mstar_engine.types import Problem

ROWS = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=6)
)


# --- Pass@K ---


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
    groups, ks = [make_group(row) for row in rows], range(1, len(rows[0]) + 1)
    values = [dynamics.pass_at_k(groups, k).value for k in ks]
    assert values == sorted(values)
    assert values[0] == dynamics.greedy_accuracy(groups).value
    assert values[-1] == pytest.approx(np.mean([any(row) for row in rows]))
    unbiased = [dynamics.unbiased_pass_at_k(groups, k).value for k in ks]
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(unbiased))
    assert unbiased[0] == pytest.approx(dynamics.sample_accuracy(groups).value)
    assert unbiased[-1] == pytest.approx(values[-1])


def test_unbiased_is_safe_for_large_n():
    n, c, k = 10**6, 3, 1000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert dynamics._unbiased(n, c, k) == pytest.approx(exact, rel=1e-9)
    assert dynamics._unbiased(n, 0, k) == 0.0 and dynamics._unbiased(n, n, 1) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_difference_is_that_of_the_two(rows):
    greedy, sampled = [make_group([first]) for first, _ in rows], [make_group(row) for _, row in rows]
    for k in (1, 2, 3):
        estimate = dynamics.pass_at_k_minus_greedy(sampled, greedy, k)
        both = dynamics.pass_at_k(sampled, k).value - dynamics.greedy_accuracy(greedy).value
        assert estimate.value == pytest.approx(both) and estimate.items == len(rows)
        assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_no_difference_anywhere_leaves_doubt():
    groups = [make_group([True]), make_group([False], "q")]
    estimate, doubt = dynamics.pass_at_k_minus_greedy(groups, groups, 1), wilson(0, 2).high
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-doubt, 0, doubt))


def test_a_paired_difference_is_surer_than_two_accuracies():
    """200 problems, half of them hopeless and the rest mostly solved: what the greedy response gets right, samples do.
    The outcomes are drawn with a fixed seed: no false alarm."""
    rng = np.random.default_rng(4)
    chance = np.where(np.arange(200) % 2, 0.8, 0.0)
    greedy = [make_group([bool(rng.random() < p)], str(i)) for i, p in enumerate(chance)]
    sampled = [make_group((rng.random(4) < p).tolist(), str(i)) for i, p in enumerate(chance)]
    paired = dynamics.pass_at_k_minus_greedy(sampled, greedy, 4)
    alone = [dynamics.pass_at_k(sampled, 4), dynamics.greedy_accuracy(greedy)]
    unpaired = math.hypot(*(estimate.high - estimate.low for estimate in alone))
    assert paired.high - paired.low < 0.75 * unpaired
    assert paired.low > 0 and alone[0].low < alone[1].high  # only the paired interval shows the difference


# --- scores and votes ---


def test_reward_pass_at_k_by_hand():
    groups = [
        score_group([("2", 0.9, 1), ("1", 0.8, 1), ("2", 0.1, 1)]),
        score_group([("1", 0.1, 1), ("2", 0.5, 1), ("2", 0.6, 1)], "q"),
        score_group([("2", 0.5, 3), ("1", 0.5, 2), ("1", 0.2, 1)], "r"),
        score_group([("2", 0.5, 2), ("1", 0.5, 2), ("2", 0.2, 1)], "s"),
    ]
    # At 1: only r, by fewer tokens. At 2: all but q, whose correct response scores least.
    assert [dynamics.reward_pass_at_k(groups, k) for k in (1, 2, 3)] == [wilson(n, 4) for n in (1, 3, 4)]


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
def test_reward_pass_at_k_counts_who_stands_before_a_right_response(rows):
    """Brute force without sorting: a right response is among the best k when fewer than k others go before it."""

    def before(one, i, other, j):
        return (-other[1], other[2], j) < (-one[1], one[2], i)

    for k in range(1, len(rows[0]) + 1):
        hits = sum(
            any(
                one[0] == "1" and sum(before(one, i, other, j) for j, other in enumerate(row)) < k
                for i, one in enumerate(row)
            )
            for row in rows
        )
        assert dynamics.reward_pass_at_k([score_group(row) for row in rows], k) == wilson(hits, len(rows))


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
        assert estimate == dynamics.vote_accuracy(groups, rule, n) == dynamics.vote_accuracy(groups, rule)
        assert estimate.value <= dynamics.pass_at_k(groups, n).value
    # Equal scores: the weighted vote is the majority, ties included.
    flat = [score_group([(a, 0.5, t) for a, _, t in row]) for row in rows]
    assert dynamics.vote_accuracy(flat, "weighted", n) == dynamics.vote_accuracy(flat, "majority", n)


@given(SCORED)
@settings(deadline=None)
def test_votes_against_counting(rows):
    """The accuracy lies between that of ties decided against the reference answer and that of ties decided for it."""
    weights = {
        "majority": lambda row: Counter(answer for answer, _, _ in row if answer),
        "weighted": lambda row: {a: sum(s for b, s, _ in row if b == a) for a, _, _ in row if a},
        "best_of_n": lambda row: {a: max(s for b, s, _ in row if b == a) for a, _, _ in row if a},
    }
    for rule, weigh in weights.items():
        sure = possible = 0
        for row in rows:
            found = weigh(row)
            others = [weight for answer, weight in found.items() if answer != "1"]
            possible += "1" in found and found["1"] >= max(others, default=0)
            sure += "1" in found and found["1"] > max(others, default=-1)
        value = dynamics.vote_accuracy([score_group(row) for row in rows], rule).value
        assert sure / len(rows) <= value <= possible / len(rows)


def test_votes_by_hand():
    groups = [
        score_group([("1.", 0.1, 1), ("01", 0.1, 1), ("2", 0.3, 1), ("3", 0.4, 1)], gold="+1"),
        score_group([(None, 0.1, 1)] * 4, "q"),
    ]
    accuracy = {rule: dynamics.vote_accuracy(groups, rule, 4).value for rule in ("majority", "weighted", "best_of_n")}
    assert accuracy == {"majority": 0.5, "weighted": 0.0, "best_of_n": 0.0}
    assert dynamics.verifier_table(groups, [2])[2]["best_of_n"] == wilson(1, 2)


# --- entropy, length, steps, diversity ---


def test_means_weigh_tokens_and_responses_alike():
    """Two problems with one and three responses: the ratio of sums, not a mean of the problems' means."""
    groups = [
        group_of([make_response(0, True, tokens=8, entropy=1.0, text="a\n\nb\n\nc\n\nd")], "a"),
        group_of([make_response(i, False, tokens=1 + i, entropy=0.25, text="a\n\nb") for i in range(3)], "b"),
    ]
    assert dynamics.length(groups).value == pytest.approx((8 + 1 + 2 + 3) / 4)
    assert dynamics.entropy(groups).value == pytest.approx((8 * 1.0 + 6 * 0.25) / 14)
    assert dynamics.steps(groups).value == pytest.approx((4 + 2 + 2 + 2) / 4)
    assert dynamics.steps(groups, max_steps=3).value == pytest.approx((3 + 2 + 2 + 2) / 4)
    assert dynamics.steps(groups, delimiter="c").value == pytest.approx((2 + 1 + 1 + 1) / 4)
    for metric in (dynamics.length, dynamics.entropy, dynamics.steps):
        estimate = metric(groups)
        # Two problems: a resample is one of them twice, or both.
        ends = sorted(metric([group]).value for group in groups)
        assert [estimate.low, estimate.high] == pytest.approx(ends) and estimate.items == 2


def test_the_order_of_the_problems_does_not_matter():
    groups = [
        group_of([make_response(0, True, tokens=1 + i * i % 37, entropy=i / 8, text="a\n\n" * i)], f"p{i}")
        for i in range(25)
    ]
    for metric in (dynamics.length, dynamics.entropy, dynamics.steps):
        found = [metric(groups, seed) for seed in range(4)]
        assert found == [metric(groups[::-1], seed) for seed in range(4)] and len(set(found)) > 1


@given(ROWS)
@settings(deadline=None)
def test_a_problem_is_solved_by_none_some_or_all(rows):
    found = dynamics.solved([make_group(row) for row in rows])
    assert sum(estimate.value for estimate in found.values()) == pytest.approx(1)
    counts = Counter("none" if not any(row) else "all" if all(row) else "some" for row in rows)
    assert found == {f"solved_{name}": wilson(counts[name], len(rows)) for name in ("none", "some", "all")}


@given(st.lists(st.lists(st.sampled_from(["a", " a", "a\n", "b", ""]), min_size=1, max_size=5), min_size=1, max_size=6))
@settings(deadline=None)
def test_distinct_responses(texts):
    groups = [group_of([make_response(i, True, text=text) for i, text in enumerate(row)]) for row in texts]
    estimate = dynamics.distinct(groups)
    assert estimate.value == pytest.approx(np.mean([len(set(map(str.strip, row))) / len(row) for row in texts]))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


# --- refusals ---


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


def test_refusals_name_the_problem():
    with pytest.raises(ValueError, match="no groups"):
        dynamics.greedy_accuracy([])
    with pytest.raises(ValueError, match="problem q, sample 1: not judged"):
        dynamics.greedy_accuracy([make_group([True, None], "q")])
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k}; allowed: 1 to 2, the responses of problem p"):
            dynamics.pass_at_k([make_group([True, True])], k)
    with pytest.raises(ValueError, match="problem p is paired with q"):
        dynamics.pass_at_k_minus_greedy([make_group([True])], [make_group([True], "q")], 1)
