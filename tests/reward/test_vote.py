"""Votes: winners by hand and by brute force, ties that do not depend on chance, and who does not vote."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.reward.answers import extract_answer, normalise
from mstar_engine.reward.vote import RULES, Vote, best_of_n, majority_vote, weighted_vote
from mstar_engine.types import Group, Problem, Response


def make_group(rows) -> Group:
    """A group from (answer, score): texts only, so that the answer is read from them."""
    none = np.zeros(0, np.float32)
    responses = [
        Response(
            sample=sample,
            token_ids=np.zeros(0, np.int32),
            text="no heading" if answer is None else f"# Answer\n{answer}",
            logprobs=none,
            scaled_logprobs=none,
            filtered_logprobs=none,
            entropy=none,
            finish_reason="stop",
            temperature=1.0,
            score=score,
        )
        for sample, (answer, score) in enumerate(rows)
    ]
    return Group(problem=Problem(id="p", question="?"), responses=tuple(responses), prompt_length=1)


def test_by_hand():
    group = make_group([("3", 0.25), ("12", 0.5), ("012.", 0.5), (None, 0.9), ("B", 0.25), ("+3", 0.125), ("12", 0.0)])
    assert majority_vote(group) == Vote(answer="12", share=3 / 6, margin=1 / 6, support=3)
    assert weighted_vote(group) == Vote(answer="12", share=1 / 1.625, margin=(1 - 0.375) / 1.625, support=3)
    assert best_of_n(group) == Vote(answer="12", share=0.5 / 1, margin=0.25 / 1, support=3)
    assert majority_vote(group, 1) == Vote(answer="3", share=1.0, margin=1.0, support=1)
    assert majority_vote(group, first=3).answer == "12"


def test_the_rules_differ():
    group = make_group([("1", 0.1), ("1", 0.1), ("1", 0.1), ("2", 0.3), ("2", 0.3), ("3", 0.5)])
    assert [rule(group, None).answer for rule in RULES.values()] == ["1", "2", "3"]
    assert list(RULES) == ["majority", "weighted", "best_of_n"]


def test_ties():
    # Equally frequent: the higher sum of scores, then the earlier sample.
    assert majority_vote(make_group([("1", 0.1), ("2", 0.2)])) == Vote(answer="2", share=0.5, margin=0.0, support=1)
    assert majority_vote(make_group([("1", None), ("2", 0.2)])).answer == "2"
    assert majority_vote(make_group([("1", math.nan), ("2", None)])).answer == "1"
    assert weighted_vote(make_group([("2", 0.2), ("1", 0.1), ("1", 0.1)])).answer == "2"
    assert best_of_n(make_group([("1", 0.5), ("2", 0.5), ("2", 0.1)])).answer == "2"
    assert best_of_n(make_group([("1", 0.5), ("2", 0.5)])).answer == "1"


def test_scores_of_zero_leave_no_share():
    assert weighted_vote(make_group([("1", 0.0), ("2", 0.0)])) == Vote(answer="1", share=0.0, margin=0.0, support=1)


def test_who_does_not_vote():
    for rule in RULES.values():
        assert rule(make_group([]), None) is None
        assert rule(make_group([(None, None), (".", 0.9)]), None) is None
    group = make_group([("1", 0.9), ("1", 0.9), ("2", 0.1)])
    cut = [dataclasses.replace(r, finish_reason="length") for r in group.responses[:2]]
    group = dataclasses.replace(group, responses=(*cut, group.responses[2]))
    assert {rule(group, None).answer for rule in RULES.values()} == {"2"}


def test_a_given_answer_goes_before_the_text():
    group = make_group([("1", 0.9)])
    given_one = dataclasses.replace(group.responses[0], answer="two words")
    assert majority_vote(dataclasses.replace(group, responses=(given_one,))).answer == "two words"


def test_refusals():
    group = make_group([("1", 0.5), (None, None), ("1", None)])
    for rule in (weighted_vote, best_of_n):
        with pytest.raises(ValueError, match="problem p, sample 2: score=None"):
            rule(group)
        assert rule(group, 2).support == 1
        for score in (math.nan, -0.1, math.inf):
            with pytest.raises(ValueError, match=f"problem p, sample 0: score={score}"):
                rule(make_group([("1", score)]))
    for first in (0, 4):
        with pytest.raises(ValueError, match=f"first={first}; allowed: 1 to 3, the responses of problem p"):
            majority_vote(group, first)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "01", "2", "2.", "b", "B", "", "1..", None]), st.integers(0, 8).map(lambda i: i / 8)
    ),
    min_size=1,
    max_size=10,
)


@given(ROWS, st.data())
@settings(deadline=None)
def test_brute_force(rows, data):
    group = make_group(rows)
    first = data.draw(st.none() | st.integers(1, len(rows)))
    votes = [(normalise(answer), score) for answer, score in rows[:first] if answer]
    weights = {
        "majority": lambda a: sum(answer == a for answer, _ in votes),
        "weighted": lambda a: sum(score for answer, score in votes if answer == a),
        "best_of_n": lambda a: max(score for answer, score in votes if answer == a),
    }
    for name, rule in RULES.items():
        result = rule(group, first)
        if not votes:
            assert result is None
            continue
        answers = list(dict.fromkeys(answer for answer, _ in votes))
        winner = max(answers, key=lambda a: (weights[name](a), weights["weighted"](a), -answers.index(a)))
        rest = [weights[name](a) for a in answers if a != winner]
        total = sum(rest) + weights[name](winner) or 1.0
        assert normalise(result.answer) == winner
        assert result.answer in [extract_answer(r.text) for r in group.responses]
        assert result.support == weights["majority"](winner)
        assert result.share == pytest.approx(weights[name](winner) / total)
        assert result.margin == pytest.approx((weights[name](winner) - max(rest, default=0)) / total)
        assert 0 <= result.margin <= result.share <= 1
