"""What of sampled responses is fit for the warm-up, and why the others are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar_engine.answer_type import AnswerType
from mstar_engine.config_parse import load_config
from mstar_engine.evolve.hint import can_hint, shown_answer
from mstar_engine.evolve.sieve import (
    FATES,
    GIVEN_AWAY,
    KEPT,
    NO_ANSWER,
    REPEATED,
    RIGHT,
    SURPLUS,
    TOO_SHORT,
    UNFINISHED,
    WRONG,
    Sieve,
    steps_before_answer,
)
from mstar_engine.reward.answers import judge
from mstar_engine.types import Group, Problem, Response

CHOICE = AnswerType(kind="choice", choices=("cat", " dog ", "cat"))


def sieve(*overrides: str) -> Sieve:
    return Sieve.of(load_config(None, ["warmup.keep=2", *overrides]))


ONE = sieve("warmup.keep=1")


def group(*texts: str, gold: str = "12", reasons: dict[int, str] | None = None) -> Group:
    empty = np.zeros(1, np.float32)
    responses = [
        Response(
            sample=i,
            token_ids=np.zeros(1, np.int32),
            text=text,
            logprobs=empty,
            scaled_logprobs=empty,
            filtered_logprobs=empty,
            entropy=empty,
            finish_reason=(reasons or {}).get(i, "stop"),
            temperature=1.0,
        )
        for i, text in enumerate(texts)
    ]
    return judge(Group(problem=Problem(id="a", question="b", gold=gold), responses=tuple(responses), prompt_length=1))


def test_each_fate():
    answer = "\n\n# Answer\n12"
    sifted, fates = sieve().sift(
        group(
            "one" + answer,
            "one" + answer + " \n",
            "# Answer 12",
            "As  PROVIDED\nabove, it is 12" + answer,
            "two\n\nthree",
            "two\n\n# Answer 13",
            "four" + answer,
            "two" + answer,
            "three" + answer,
            reasons={6: "length"},
        )
    )
    assert fates == [KEPT, REPEATED, TOO_SHORT, GIVEN_AWAY, NO_ANSWER, WRONG, UNFINISHED, KEPT, SURPLUS]
    assert set(fates) == set(FATES)
    assert [response.selected for response in sifted.responses] == [fate == KEPT for fate in fates]
    # Right by the verdicts, and right by the fates.
    assert [bool(response.correct) for response in sifted.responses] == [fate in RIGHT for fate in fates]


@given(st.lists(st.sampled_from(["1\n\n# Answer 12", "2\n\n# Answer 12", "# Answer 12", "1\n\n# Answer 1", ""])))
def test_kept_is_right_distinct_and_few(texts):
    sifted, fates = ONE.sift(group(*texts))
    kept = [response for response in sifted.responses if response.selected]
    assert len(kept) <= 1 and all(response.correct for response in kept) and fates.count(KEPT) == len(kept)
    assert bool(kept) == any(text.endswith("12") and not text.startswith("#") for text in texts)
    assert ONE.sift(sifted)[1] == fates  # again, on what is stored


def test_phrases_are_configurable():
    text = "The reference answer says so\n\n# Answer 12"
    assert sieve().sift(group(text))[1] == [GIVEN_AWAY]
    assert sieve("warmup.refuse=[]").sift(group(text))[1] == [KEPT]
    assert sieve("warmup.refuse=[SAYS  so]").sift(group(text))[1] == [GIVEN_AWAY]


@pytest.mark.parametrize(
    ("text", "steps", "kind"),
    [
        ("a\n\nb\n\n# Answer\n12", 2, None),
        ("a\n\nb\n\n# Answer\n\n12\n", 2, None),
        ("a\n\nb\n\n# Answer 12", 2, None),
        ("a\n# Answer 12", 1, None),
        ("# Answer 12", 0, None),
        ("# Answer\n12", 0, None),
        ("# Solution\n\n# Answer\n12", 0, None),
        ("# Solution\n\na\n\n# Answer\n12", 1, None),
        ("Answer:\n\n# Answer\n12", 0, None),
        ("\n\n", 0, None),
        ("a\n\nThe answer is B", 1, CHOICE),
        ("**Final answer:**\nB", 0, CHOICE),
        ("so \\boxed{B}", 0, CHOICE),
        ("a\n\nb\n\nso \\boxed{B}.", 2, CHOICE),
        ("B", 0, AnswerType(kind="choice", extract=("whole",))),
        ("a\n\nB", 1, AnswerType(kind="choice", choices=("cat", "dog"), extract=("whole",), variant="m3cot")),
        ("a\n\n(B)", 1, AnswerType(kind="choice", choices=("cat", "dog"), variant="vlmevalkit")),
    ],
)
def test_steps_before_the_answer(text, steps, kind):
    assert steps_before_answer(text, kind, "\n\n") == steps


@pytest.mark.parametrize(
    ("gold", "kind", "shown"),
    [
        (" 12 ", None, "12"),
        ("B", CHOICE, "(B) dog"),
        ("dog", CHOICE, "(B) dog"),
        ("C", CHOICE, "(A) cat"),  # equal texts are one choice
        ("B", AnswerType(kind="choice"), "B"),
        ("1.50", AnswerType(kind="float", precision=2), "1.50"),
        ("[1, 2]", AnswerType(kind="list", items="integer"), "[1, 2]"),
        (None, None, None),
        (" ", None, None),
    ],
)
def test_the_answer_as_it_is_shown(gold, kind, shown):
    """What is copied from the hint is right."""
    problem = Problem(id="a", question="b", gold=gold, answer_type=kind)
    assert shown_answer(problem) == shown and can_hint(problem) == (shown is not None)
    if shown is not None:
        made = group(f"a\n\n# Answer\n{shown}", gold=gold)
        typed = judge(Group(problem=problem, responses=made.responses, prompt_length=1))
        assert typed.responses[0].correct


@pytest.mark.parametrize("gold", ["<image>", "see <|image_pad|>"])
def test_an_answer_that_claims_an_image_is_not_shown(gold):
    assert not can_hint(Problem(id="a", question="b", gold=gold))
