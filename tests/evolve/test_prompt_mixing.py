"""Prompts: which problems an iteration meets; pseudo-labels: what their responses vote for, and which votes count."""

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar_engine.config import PromptsConfig
from mstar_engine.config_parse import ConfigError, load_config
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.evolve.prompts import Prompts, first_mixed, interval
from mstar_engine.evolve.pseudo_labels import passes, pseudo_label, pseudo_summary
from mstar_engine.reward.answers import judge
from mstar_engine.reward.vote import majority_vote
from mstar_engine.summary import PseudoSummary
from mstar_engine.types import Group, Problem, Response


def problems_named(prefix: str, count: int) -> list[Problem]:
    return [Problem(id=f"{prefix}{i}", question="?", gold=str(i), response=f"worked {i}") for i in range(count)]


def config_of(kind: str = "pseudo", *more: str):
    return load_config(None, [f"prompts.unlabelled={kind}", "data.unlabelled_problems=1", *more])


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, Prompts, Prompts]:
    """(labelled problems, iterations, prompts with and without unlabelled problems)."""
    labelled, unlabelled = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    share = draw(st.sampled_from([0.0625, 0.25, 0.3, 0.5, 0.7, 1.0]) | st.integers(2, 50))
    iterations = draw(st.integers(1, 24))
    said = [
        f"evolve.interval={share}",
        f"evolve.iterations={iterations}",
        f"seed={draw(st.integers(0, 3))}",
        f"prompts.mix_in_from={draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))}",
    ]
    given_, more = problems_named("l", labelled), problems_named("u", unlabelled)
    kind = draw(st.sampled_from(["pseudo", "oracle"]))
    return (
        labelled + unlabelled,
        iterations,
        Prompts(config_of(kind, *said), given_, more),
        Prompts(config_of("none", *said), given_, more),
    )


@given(runs())
def test_equal_compute_and_every_problem_once_a_pass(drawn: tuple[int, int, Prompts, Prompts]) -> None:
    """As many problems as without the unlabelled ones; before the mix-in the same; then each once in each pass."""
    pool, iterations, prompts, alone = drawn
    met: list[str] = []
    for iteration in range(iterations):
        problems, wanted = prompts.problems(iteration), alone.problems(iteration)
        assert len(problems) == len(wanted)
        ids = [problem.id for problem in problems]
        assert len(set(ids)) == len(ids)
        if iteration < prompts.mix_in:
            assert problems == wanted
        else:
            met += ids
    for begin in range(0, len(met), pool):
        part = met[begin : begin + pool]
        assert len(set(part)) == len(part)
    if prompts.mix_in == 0 and len(met) >= pool:
        assert {name[0] for name in met} == {"l", "u"}


@given(st.integers(1, 60), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]) | st.integers(2, 70), st.integers(0, 30))
def test_the_labelled_schedule_is_what_it_was(total: int, share: float | int, iteration: int) -> None:
    """Runs that began without unlabelled prompts go on with the same data: the schedule as first written."""
    count = min(share if isinstance(share, int) else max(1, round(share * total)), total)
    parts = -(-total // count)
    order = list(range(total))
    random.Random(f"interval/5/{iteration // parts}").shuffle(order)
    begin = (iteration % parts) * count
    problems = problems_named("l", total)
    assert interval(problems, share, iteration, 5) == [problems[i] for i in order[begin : begin + count]]


def test_the_schedule_needs_no_history() -> None:
    """Any iteration, asked for alone and in any order, is the same: a resumed run asks for the later ones only."""
    said = ["evolve.interval=0.3", "evolve.iterations=12", "prompts.mix_in_from=0.25"]
    sets = problems_named("l", 10), problems_named("u", 7)
    forward = [Prompts(config_of("pseudo", *said), *sets).problems(i) for i in range(12)]
    backward = Prompts(config_of("pseudo", *said), *sets)
    assert forward == [backward.problems(i) for i in reversed(range(12))][::-1]
    other = Prompts(config_of("pseudo", *said, "seed=1"), *sets)
    assert [other.problems(i) for i in range(3, 12)] != forward[3:]


@given(st.integers(0, 100), st.integers(1, 60))
def test_the_mix_in_begins_at_its_share(percent: int, iterations: int) -> None:
    """The first iteration before which the share is over; the whole number of percent knows no rounding."""
    share = Fraction(percent, 100)
    wanted = next(i for i in range(iterations + 1) if Fraction(i, iterations) >= share)
    assert first_mixed(percent / 100, iterations) == wanted


def test_true_answers_are_held_back() -> None:
    """No problem to be pseudo-labelled brings an answer in any field; an oracle's brings its true one."""
    sets = problems_named("l", 4), problems_named("u", 4)
    said = ("evolve.interval=1.0", "evolve.iterations=4")
    met = [problem for i in range(4) for problem in Prompts(config_of("pseudo", *said), *sets).problems(i)]
    assert {(p.label, p.gold is None) for p in met} == {("gold", False), ("pseudo", True)}
    assert all(p.truth is None and (p.label == "gold" or p.response is None) for p in met)
    met = [problem for i in range(4) for problem in Prompts(config_of("oracle", *said), *sets).problems(i)]
    assert {(p.label, p.id[0], p.gold == p.id[1:]) for p in met} == {("gold", "l", True), ("oracle", "u", True)}


def voting(answers: list[str], scores: list[float] | None = None, label: str = "pseudo") -> Group:
    """A group of finished responses with these answers."""
    none = np.zeros(1, np.float32)
    responses = tuple(
        Response(
            sample=sample,
            token_ids=none.astype(np.int32),
            text=f"# Answer {answer}" if answer else "nothing",
            logprobs=none,
            scaled_logprobs=none,
            filtered_logprobs=none,
            entropy=none,
            finish_reason="stop",
            temperature=1.0,
            score=None if scores is None else scores[sample],
        )
        for sample, answer in enumerate(answers)
    )
    return Group(problem=Problem(id="p", question="?", label=label), responses=responses, prompt_length=1)


@pytest.mark.parametrize(
    ("gate", "gold"),
    [
        ({}, "12"),
        ({"min_share": 0.75}, "12"),
        ({"min_share": 0.76}, None),
        ({"min_margin": 0.5}, "12"),
        ({"min_margin": 0.51}, None),
        ({"min_share": 0.75, "min_margin": 0.6}, None),
    ],
)
def test_a_vote_of_three_to_one(gate: dict[str, float], gold: str | None) -> None:
    """Share 0.75, lead 0.5: both thresholds are reached or the problem has no reference answer."""
    config = PromptsConfig(unlabelled="pseudo", vote="majority", **gate)
    group = pseudo_label(voting(["12", "13", "12.", " 12"]), config)
    assert group.problem.gold == gold
    verdicts = [response.correct for response in judge(group).responses]
    assert verdicts == ([True, False, True, True] if gold else [None] * 4)


def test_a_weighted_vote_goes_by_score() -> None:
    """Two weak votes lose to a strong one; without scores there is no weighted vote."""
    weighted = PromptsConfig(unlabelled="pseudo", vote="weighted")
    assert pseudo_label(voting(["12", "12", "13"], [0.1, 0.2, 0.9]), weighted).problem.gold == "13"
    assert pseudo_label(voting(["", ""], [0.1, 0.2]), weighted).problem.gold is None
    with pytest.raises(ValueError, match="problem p, sample 0"):
        pseudo_label(voting(["12"]), weighted)


def test_given_answers_are_not_voted_on() -> None:
    """Labelled problems and an oracle's keep theirs, whatever the responses say."""
    config = PromptsConfig(unlabelled="pseudo", vote="weighted")
    for label in ("gold", "oracle"):
        group = voting(["12"], label=label)
        group = replace(group, problem=replace(group.problem, gold="13"))
        assert pseudo_label(group, config) is group


shares = st.floats(0, 1)


@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=8), shares, shares, shares, shares)
def test_a_stricter_gate_passes_no_more(answers: list[str], a: float, b: float, c: float, d: float) -> None:
    """Thresholds at least as high refuse all that lower ones refuse."""
    vote = majority_vote(voting(answers))
    low = PromptsConfig(min_share=min(a, b), min_margin=min(c, d))
    high = PromptsConfig(min_share=max(a, b), min_margin=max(c, d))
    assert passes(vote, low) or not passes(vote, high)
    assert passes(vote, PromptsConfig()) == (vote is not None)


def test_the_summary_counts_labels_and_measures_those_that_are_known() -> None:
    config = PromptsConfig(unlabelled="pseudo", vote="majority", min_share=0.6)
    truths = {"right": "012", "wrong": "13", "unknown": None, "split": "12", "silent": "12"}
    answers = {"right": ["12"], "wrong": ["12"], "unknown": ["12"], "split": ["12", "13"], "silent": [""]}
    groups = []
    for name, said in answers.items():
        group = voting(said)
        labelled = pseudo_label(replace(group, problem=replace(group.problem, id=name)), config)
        groups.append(replace(labelled, problem=replace(labelled.problem, truth=truths[name])))
    groups.append(voting(["12"], label="gold"))
    assert pseudo_summary(groups, config) == PseudoSummary(problems=5, voted=4, passed=3, accuracy=wilson(1, 2))
    assert pseudo_summary(groups[2:3], config) == PseudoSummary(problems=1, voted=1, passed=1)
    assert pseudo_summary(groups[5:], config) is None


def test_the_true_answer_comes_back_for_the_record() -> None:
    unknown = replace(problems_named("v", 1)[0], gold=None)
    prompts = Prompts(config_of(), problems_named("l", 1), [*problems_named("u", 2), unknown])
    for name, truth in (("u1", "1"), ("v0", None)):
        group = voting(["7"])
        group = prompts.reveal(replace(group, problem=replace(group.problem, id=name, gold="7")))
        assert (group.problem.gold, group.problem.truth) == ("7", truth)
    given_ = voting(["7"], label="oracle")
    assert prompts.reveal(given_) is given_


def test_what_is_mixed_in_is_said() -> None:
    sets = problems_named("l", 3), problems_named("u", 2)
    said = ("evolve.iterations=4", "prompts.mix_in_from=0.5")
    assert Prompts(config_of("none"), *sets).in_words() is None
    assert "from iteration 3 on 2 unlabelled with true answers" in Prompts(config_of("oracle", *said), *sets).in_words()
    words = Prompts(config_of("pseudo", *said, "prompts.min_share=0.6"), *sets).in_words()
    assert "weighted vote" in words and "share 0.6" in words
    assert "in no iteration" in Prompts(config_of("oracle", "prompts.mix_in_from=1"), *sets).in_words()


def test_sft_has_nothing_to_vote() -> None:
    with pytest.raises(ConfigError, match=r'prompts\.unlabelled="pseudo".*evolve\.method=sft'):
        config_of("pseudo", "evolve.method=sft")
    assert config_of("oracle", "evolve.method=sft").prompts.unlabelled == "oracle"
