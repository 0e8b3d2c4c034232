"""Reasons agree with what the selection did, on responses with so few texts, scores and lengths that they meet."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.report import reasons as why
from mstar_engine.report.reasons import Outcome, Reason, reasons
from mstar_engine.reward.select import select
from mstar_engine.types import Group
from runs import make_group

ROW = st.tuples(
    st.sampled_from(["a", "a ", "b", "c", "d"]),
    st.sampled_from([True, True, True, False, None]),
    st.sampled_from([0.2, 0.5, 0.5004, 0.9]),
    st.integers(1, 2),
    st.sampled_from(["stop", "length"]),
)
SELECT = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["all", "random", "top_k", "threshold"]),
        "k": st.integers(1, 3),
        "alpha": st.sampled_from([0.2, 0.5]),
    }
) | st.fixed_dictionaries(
    {"kind": st.sampled_from(["all", "random", "top_k"]), "k": st.integers(1, 3), "alpha": st.none()}
)


def group_of(rows) -> Group:
    """Responses of (text, correct, score, tokens, finish reason)."""
    group = make_group("one", ["12"] * len(rows))
    responses = tuple(
        replace(r, text=text, correct=correct, score=score, finish_reason=end, token_ids=np.zeros(tokens, np.int32))
        for r, (text, correct, score, tokens, end) in zip(group.responses, rows, strict=True)
    )
    return replace(group, responses=responses)


def outcomes_of(group: Group) -> list[Outcome]:
    return [Outcome(r.text, r.correct, r.selected, r.score, len(r.token_ids), r.finish_reason) for r in group.responses]


@given(st.lists(ROW, min_size=1, max_size=8), SELECT, st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_every_reason_is_the_one_that_the_selection_had(rows, config, seed):
    group = select(group_of(rows), config["kind"], config["k"], seed, config["alpha"])
    outcomes = outcomes_of(group)
    kept = [one for one in outcomes if one.selected]
    for one, reason, (index, response) in zip(
        outcomes, reasons(outcomes, config), enumerate(group.responses), strict=True
    ):
        assert reason.kind != why.NOT_KEPT, (one, config)
        assert (reason.kind == why.KEPT) == one.selected
        assert (reason.kind == why.NOT_JUDGED) == (one.correct is None)
        assert (reason.kind in (why.WRONG, why.UNFINISHED)) == (one.correct is False)
        if reason.kind == why.UNFINISHED:
            assert one.finish_reason == "length"
        # With what is blamed put right, this very response is kept, or another blame comes to light.
        if reason.kind == why.BELOW:
            assert one.score <= config["alpha"]
        if reason.kind == why.SAME_TEXT:
            other = replace(response, text="unlike any other")
            again = replace(group, responses=tuple(other if i == index else r for i, r in enumerate(group.responses)))
            assert any(one.text.strip() == other.text.strip() for other in kept)
            if config["kind"] in ("all", "threshold"):
                again = select(again, config["kind"], config["k"], seed, config["alpha"])
                assert again.responses[index].selected
        if reason.kind in (why.OUTSCORED, why.NOT_DRAWN):
            assert config["kind"] == ("top_k" if reason.kind == why.OUTSCORED else "random")
            more = select(group, config["kind"], len(rows), seed, config["alpha"])
            texts = {r.text.strip() for r in more.responses if r.selected}
            assert len(kept) == config["k"] and one.text.strip() in texts
        if reason.kind == why.OUTSCORED:
            best = replace(response, score=1.0)
            again = replace(group, responses=tuple(best if i == index else r for i, r in enumerate(group.responses)))
            assert select(again, "top_k", config["k"], seed, config["alpha"]).responses[index].selected


def outcome(text="x", correct=True, selected=False, score=0.5, tokens=3, finish="stop") -> Outcome:
    return Outcome(text, correct, selected, score, tokens, finish)


KEPT = [outcome("a", selected=True, score=0.9), outcome("b", selected=True, score=0.8)]


TOP_2 = {"kind": "top_k", "k": 2}


@pytest.mark.parametrize(
    ("one", "config", "kind", "words"),
    [
        (outcome(score=0.61), TOP_2, "outscored", "0.61, below the 2 best (lowest kept 0.80)"),
        (outcome(score=0.7999), TOP_2, "outscored", "0.7999, below the 2 best (lowest kept 0.8000)"),
        (outcome(score=0.8, tokens=4), TOP_2, "outscored", "0.80 like the lowest kept, and longer"),
        (outcome(score=0.8), TOP_2, "outscored", "0.80 like the lowest kept, and lost the draw"),
        (outcome("b ", score=0.8), TOP_2, "same text", "as a kept one"),
        (outcome(score=0.4), TOP_2 | {"alpha": 0.5}, "below the threshold", "0.40 is not above 0.5"),
        (outcome(score=0.5), {"kind": "threshold", "alpha": 0.5}, "below the threshold", "0.50 is not above 0.5"),
        (outcome(), {"kind": "random", "k": 2}, "not drawn", "2 were drawn"),
        (outcome(correct=False), {"kind": "random", "k": 2}, "wrong", ""),
        (outcome(correct=False, finish="length"), {"kind": "all"}, "unfinished", "it did not come to an end"),
        (outcome(correct=None), {"kind": "all"}, "not judged", ""),
        # What the rules do not explain: another version's kind, a missing score, a score too good to be left out.
        (outcome(), {"kind": "other", "k": 2}, "not kept", ""),
        (outcome(), {"kind": "all", "k": 2}, "not kept", ""),
        (outcome(score=None), TOP_2, "not kept", ""),
        (outcome(score=float("nan")), TOP_2 | {"alpha": 0.1}, "not kept", ""),
        (outcome(score=0.99), TOP_2, "not kept", ""),
        (outcome(score=0.1), {"kind": "top_k", "k": 3}, "not kept", ""),
        (outcome(), {}, "not kept", ""),
    ],
)  # fmt: skip
def test_reasons_in_words(one, config, kind, words):
    assert reasons([*KEPT, one], config) == [Reason("kept"), Reason("kept"), Reason(kind, words)]
