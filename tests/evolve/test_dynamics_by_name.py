"""All dynamics by name: values by hand, what is absent without samples or scores, refusals that name the problem."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_groups import SCORED, make_group, score_group

from mstar_engine.evolve import dynamics
from mstar_engine.evolve.intervals import wilson

NAMES = [
    "greedy",
    "pass_at_1",
    "pass_at_k",
    "unbiased_pass_at_k",
    "pass_at_k_minus_greedy",
    "reward_pass_at_k",
    "majority",
    "weighted",
    "best_of_n",
    "entropy",
    "length",
    "steps",
    "solved_none",
    "solved_some",
    "solved_all",
    "distinct",
]
NEED_SCORES = {"reward_pass_at_k", "weighted", "best_of_n"}


def three_problems():
    """(greedy, then four samples) of three problems: right and scored first, right and outvoted, never right."""
    rows = {
        "a": [("1", 0.0, 9), ("1", 0.9, 1), ("2", 0.8, 2), ("2", 0.7, 2), ("1", 0.1, 3)],
        "b": [("2", 0.0, 9), ("2", 0.5, 1), ("3", 0.6, 1), ("1", 0.55, 1), ("1", 0.4, 1)],
        "c": [("1", 0.0, 9), ("2", 0.3, 1), ("2", 0.3, 1), ("2", 0.3, 1), ("2", 0.3, 1)],
    }
    texts = ("greedy\n\nis\n\nnot\n\ncounted", "x\n\ny", "x\n\ny", "x\n\ny\n\nz", "")
    return [
        dataclasses.replace(
            group, responses=tuple(dataclasses.replace(r, text=t) for r, t in zip(group.responses, texts, strict=True))
        )
        for group in (score_group(row, name) for name, row in rows.items())
    ]


def test_every_metric_by_hand():
    found = dynamics.measure(three_problems(), k=2, reward_k=1, scored=True)
    wanted = {
        "greedy": 2 / 3,
        "pass_at_1": (2 / 4 + 2 / 4 + 0) / 3,
        "pass_at_k": 1 / 3,  # the first two samples: only a's
        "unbiased_pass_at_k": (5 / 6 + 5 / 6 + 0) / 3,  # 1 - C(2, 2) / C(4, 2)
        "pass_at_k_minus_greedy": (0 + 0 - 1) / 3,
        "reward_pass_at_k": 1 / 3,  # at 1: only a's best
        "majority": 1 / 3,  # a ties, and 2 has the larger sum of scores
        "weighted": 1 / 3,  # only b: 0.95 against 0.6 and 0.5
        "best_of_n": 1 / 3,
        "entropy": 0.5,
        "length": (8 + 4 + 4) / 12,
        "steps": (2 + 2 + 3 + 0) / 4,
        "solved_none": 1 / 3,
        "solved_some": 2 / 3,
        "solved_all": 0,
        "distinct": 3 / 4,
    }
    assert list(found) == list(wanted) == NAMES
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(wanted)
    assert all(estimate.items == 3 for estimate in found.values())
    other = dynamics.measure(three_problems(), k=2, reward_k=2, scored=True, delimiter="y", max_steps=2)
    assert other["reward_pass_at_k"] == wilson(2, 3)
    assert other["steps"].value == pytest.approx((1 + 1 + 2 + 0) / 4)
    assert dynamics.measure(three_problems(), k=2, max_steps=1)["steps"].value == pytest.approx(3 / 4)


def test_what_is_absent():
    groups = three_problems()
    unscored = dynamics.measure(groups, k=2)
    assert list(unscored) == [name for name in NAMES if name not in NEED_SCORES]
    scored = dynamics.measure(groups, k=2, scored=True)
    assert unscored == {name: scored[name] for name in unscored}
    greedy = [dataclasses.replace(group, responses=group.responses[:1]) for group in groups]
    assert dynamics.measure(greedy) == {"greedy": scored["greedy"]}


@pytest.mark.parametrize("seed", [0, 3])
def test_the_seed_is_that_of_every_bootstrap(seed):
    rng = np.random.default_rng(1)
    groups = [
        score_group([("1", 0.5, 2), *((str(a), a / 4, t) for a, t in rng.integers(1, 5, (6, 2)))], f"p{index}")
        for index in range(25)
    ]
    samples = [dataclasses.replace(group, responses=group.responses[1:]) for group in groups]
    found = dynamics.measure(groups, seed=seed)
    for name, metric in (("length", dynamics.length), ("steps", dynamics.steps), ("entropy", dynamics.entropy)):
        assert found[name] == metric(samples, seed)
    assert found["pass_at_1"] == dynamics.sample_accuracy(samples, seed)
    assert found["length"] != dynamics.length(samples, 7) and found["pass_at_1"] != dynamics.sample_accuracy(samples, 7)


@given(SCORED, st.randoms(use_true_random=False), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_intervals_hold_their_values_in_any_order_of_the_problems(rows, random, seed):
    groups = [score_group([("1", 0.5, 2), *row], f"p{index}") for index, row in enumerate(rows)]
    found = dynamics.measure(groups, reward_k=1, scored=True, seed=seed)
    assert list(found) == NAMES
    for name, estimate in found.items():
        assert estimate.low <= estimate.value <= estimate.high, name
    random.shuffle(groups)
    assert dynamics.measure(groups, reward_k=1, scored=True, seed=seed) == found


def spoiled(**fields):
    """Three good problems and one whose second sample has these fields."""
    group = score_group([("1", 0.5, 2)] * 3, "q")
    bad = dataclasses.replace(group.responses[2], **fields)
    return [*three_problems(), dataclasses.replace(group, responses=(*group.responses[:2], bad))]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([], "no groups to measure"),
        ([*three_problems(), make_group([], "q")], "problem q: no responses"),
        ([*three_problems(), make_group([True], "q")], "problem q: no responses"),  # no samples
        (spoiled(correct=None), "problem q, sample 2: not judged"),
        (spoiled(score=math.nan), "problem q, sample 2: score=nan"),
        (spoiled(score=None), "problem q, sample 2: score=None"),
        (spoiled(entropy=np.array([0.5, np.nan], np.float32)), "problem q, sample 2: the entropy of a token is NaN"),
        (spoiled(entropy=np.array([0.5, np.inf], np.float32)), "problem q, sample 2: the entropy of a token is NaN"),
        (spoiled(token_ids=np.zeros(0, np.int32)), "problem q, sample 2: no tokens"),
    ],
)
def test_hostile_groups_are_refused_by_name(groups, said):
    with pytest.raises(ValueError, match=said):
        dynamics.measure(groups, k=2, scored=True)
