"""Selection: correct responses only, no duplicates, ties by length and seed, never by order of arrival."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.reward.select import KINDS, select
from mstar_engine.types import Group, Problem, Response


def make_group(rows) -> Group:
    """A group from (text, correct, score, tokens)."""
    responses = []
    for sample, (text, correct, score, tokens) in enumerate(rows):
        zeros = np.zeros(tokens, np.float32)
        responses.append(
            Response(
                sample=sample,
                token_ids=zeros.astype(np.int32),
                text=text,
                logprobs=zeros,
                scaled_logprobs=zeros,
                filtered_logprobs=zeros,
                entropy=zeros,
                finish_reason="stop",
                temperature=1.0,
                correct=correct,
                score=score,
            )
        )
    return Group(problem=Problem(id="p", question="?", gold="1"), responses=tuple(responses), prompt_length=1)


def chosen(group: Group) -> list[int]:
    return [response.sample for response in group.responses if response.selected]


SCORES = st.floats(0, 1) | st.sampled_from([0.3, 0.5])
ALPHAS = st.sampled_from([-0.5, 0.0, 0.3, 0.5, 1.0])
GROUPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([True, False, None]), SCORES, st.integers(0, 3)),
    max_size=8,
).map(make_group)


def test_top_k_ranks_by_score_then_length():
    group = make_group(
        [("a", True, 0.5, 9), ("b", True, 0.5, 3), ("c", True, 0.5, 4), ("d", False, 0.9, 1), ("e", True, 0.7, 9)]
    )
    assert chosen(select(group, "top_k", 1)) == [4]
    assert chosen(select(group, "top_k", 2)) == [1, 4]
    assert chosen(select(group, "top_k", 3)) == [1, 2, 4]
    assert chosen(select(group, "top_k", 9)) == [0, 1, 2, 4]


def test_what_ties_is_drawn_by_seed():
    group = make_group([(letter, True, 0.5, 3) for letter in "abcd"] + [("e", True, 0.5, 4)])
    counts = np.zeros(5)
    for seed in range(1200):
        for sample in chosen(select(group, "top_k", 2, seed)):
            counts[sample] += 1
    # As below: 5 standard deviations over a fixed range of seeds.
    assert np.all(np.abs(counts[:4] - 600) < 87) and counts[4] == 0


@pytest.mark.parametrize(
    ("kind", "k", "alpha", "samples"),
    [
        ("all", 1, None, [0, 1, 3, 4]),
        ("all", 1, 0.5, [1, 4]),
        ("threshold", 1, 0.5, [1, 4]),
        ("threshold", 1, 0.49, [1, 3, 4]),
        ("threshold", 1, 0.9, []),
        ("threshold", 1, -1.0, [0, 1, 3, 4]),
        ("top_k", 1, 0.5, [1]),
        ("top_k", 3, 0.5, [1, 4]),
        ("top_k", 2, 0.85, [1]),
        ("top_k", 2, None, [1, 4]),
        ("random", 9, 0.5, [1, 4]),
        ("random", 2, 0.9, []),
    ],
)
def test_threshold_goes_first_and_is_strict(kind, k, alpha, samples):
    rows = [("a", True, 0.1, 3), ("b", True, 0.9, 3), ("c", False, 0.9, 3), ("d", True, 0.5, 3), ("e", True, 0.8, 3)]
    assert chosen(select(make_group(rows), kind, k, alpha=alpha)) == samples


def test_of_identical_responses_the_best_stays():
    group = make_group([("a", True, 0.1, 3), ("a\n", True, 0.9, 3), ("a", False, 1.0, 1)])
    assert chosen(select(group, "all")) == [1]


@pytest.mark.parametrize(("kind", "alpha"), [("top_k", None), ("top_k", 0.5), ("threshold", 0.5), ("random", 0.5)])
def test_scores_where_they_are_needed(kind, alpha):
    group = make_group([("a", True, 0.7, 3), ("a", True, None, 3), ("b", False, None, 3)])
    with pytest.raises(ValueError, match="problem p, sample 1: score=None"):
        select(group, kind, alpha=alpha)
    with pytest.raises(ValueError, match="problem p, sample 0: score=nan"):
        select(make_group([("a", True, math.nan, 3)]), kind, alpha=alpha)
    # Scores of wrong responses are not needed, nor any where nothing is ranked.
    assert chosen(select(make_group([("a", True, 0.7, 3), ("b", False, None, 3)]), kind, alpha=alpha)) == [0]
    assert chosen(select(group, "all")) == [0] and len(chosen(select(group, "random"))) == 1


def test_a_missing_score_ranks_last():
    rows = [("a", True, math.nan, 1), ("a", True, None, 1), ("a", True, 0.1, 3)]
    assert chosen(select(make_group(rows), "all")) == [2]


def test_bad_arguments():
    group = make_group([])
    for arguments, message in (
        (("best",), "kind='best'; allowed: all, random, top_k, threshold"),
        (("top_k", 0), "k=0"),
        (("threshold",), "kind='threshold', alpha=None; allowed: a number"),
        (("top_k", 2, 0, math.nan), "alpha=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            select(group, *arguments)


def test_random_is_uniform_over_seeds():
    group = make_group([(letter, True, 0.5, 3) for letter in "abcd"])
    counts = np.zeros(4)
    for seed in range(1200):
        for sample in chosen(select(group, "random", 2, seed)):
            counts[sample] += 1
    # Each is kept half the time, sd sqrt(1200)/2 = 17.3; a fixed seed range, so this cannot flake. 5 sd.
    assert np.all(np.abs(counts - 600) < 87)


@given(GROUPS, st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 99), st.none() | ALPHAS, st.randoms())
@settings(deadline=None)
def test_invariants(group, kind, k, seed, alpha, random):
    if kind == "threshold" and alpha is None:
        alpha = 0.5
    result = select(group, kind, k, seed, alpha)
    kept = [r for r in result.responses if r.selected]
    eligible = [r for r in group.responses if r.correct and (alpha is None or r.score > alpha)]
    distinct = {r.text for r in eligible}
    limit = k if kind in ("random", "top_k") else len(distinct)
    assert {r.sample for r in kept} <= {r.sample for r in eligible}
    assert len({r.text for r in kept}) == len(kept) == min(limit, len(distinct))
    assert chosen(select(result, kind, k, seed, alpha)) == chosen(result)
    shuffled = list(group.responses)
    random.shuffle(shuffled)
    again = select(dataclasses.replace(group, responses=tuple(shuffled)), kind, k, seed, alpha)
    assert sorted(chosen(again)) == sorted(chosen(result))
    if kind != "random":
        best = {text: min((-r.score, len(r.token_ids)) for r in eligible if r.text == text) for text in distinct}
        assert sorted((-r.score, len(r.token_ids)) for r in kept) == sorted(best.values())[: len(kept)]
    if kind == "threshold":
        assert chosen(result) == chosen(select(group, "all", 1, seed, alpha))


@given(GROUPS, st.sampled_from(["random", "top_k"]), st.integers(1, 5), st.integers(0, 99), ALPHAS)
@settings(deadline=None)
def test_a_threshold_is_as_if_the_rest_were_wrong(group, kind, k, seed, alpha):
    left = [dataclasses.replace(r, correct=bool(r.correct) and r.score > alpha) for r in group.responses]
    without = select(dataclasses.replace(group, responses=tuple(left)), kind, k, seed)
    assert chosen(select(group, kind, k, seed, alpha)) == chosen(without)
