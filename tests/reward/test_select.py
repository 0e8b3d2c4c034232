"""Selection: correct responses only, no duplicates, ties by length and sample, never by order of arrival."""

import dataclasses

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


GROUPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([True, False, None]), st.floats(0, 1), st.integers(0, 3)),
    max_size=8,
).map(make_group)


def test_top_k_ranks_by_score_then_length_then_sample():
    group = make_group(
        [("a", True, 0.5, 9), ("b", True, 0.5, 3), ("c", True, 0.5, 3), ("d", False, 0.9, 1), ("e", True, 0.7, 9)]
    )
    assert chosen(select(group, "top_k", 1)) == [4]
    assert chosen(select(group, "top_k", 2)) == [1, 4]
    assert chosen(select(group, "top_k", 3)) == [1, 2, 4]


def test_of_identical_responses_the_best_stays():
    group = make_group([("a", True, 0.1, 3), ("a\n", True, 0.9, 3), ("a", False, 1.0, 1)])
    assert chosen(select(group, "all")) == [1]


def test_top_k_needs_scores():
    group = make_group([("a", True, None, 3), ("b", False, None, 3)])
    with pytest.raises(ValueError, match="problem p, sample 0: score=None"):
        select(group, "top_k", 2)
    with pytest.raises(ValueError, match="score=nan"):
        select(make_group([("a", True, float("nan"), 3)]), "top_k", 2)
    assert chosen(select(group, "all")) == [0]


def test_bad_arguments():
    group = make_group([])
    with pytest.raises(ValueError, match="kind='best'"):
        select(group, "best")
    with pytest.raises(ValueError, match="k=0"):
        select(group, "top_k", 0)


def test_random_is_uniform_over_seeds():
    group = make_group([(letter, True, 0.5, 3) for letter in "abcd"])
    counts = np.zeros(4)
    for seed in range(1200):
        for sample in chosen(select(group, "random", 2, seed)):
            counts[sample] += 1
    # Each is kept half the time, sd sqrt(1200)/2 = 17.3; a fixed seed range, so this cannot flake. 5 sd.
    assert np.all(np.abs(counts - 600) < 87)


@given(GROUPS, st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 99), st.randoms())
@settings(deadline=None)
def test_invariants(group, kind, k, seed, random):
    result = select(group, kind, k, seed)
    kept = [r for r in result.responses if r.selected]
    distinct = {r.text for r in group.responses if r.correct}
    assert all(r.correct for r in kept)
    assert len({r.text for r in kept}) == len(kept) == (len(distinct) if kind == "all" else min(k, len(distinct)))
    assert chosen(select(result, kind, k, seed)) == chosen(result)
    shuffled = list(group.responses)
    random.shuffle(shuffled)
    again = select(dataclasses.replace(group, responses=tuple(shuffled)), kind, k, seed)
    assert sorted(chosen(again)) == sorted(chosen(result))
    if kind == "top_k" and kept:
        worst = min(r.score for r in kept)
        best = {}
        for r in group.responses:
            if r.correct:
                best[r.text] = max(best.get(r.text, -1.0), r.score)
        left = [score for text, score in best.items() if text not in {r.text for r in kept}]
        assert all(score <= worst for score in left)
