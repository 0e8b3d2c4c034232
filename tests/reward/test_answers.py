"""Answers: extraction after the last heading, exact comparison, and nothing that a policy could exploit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.reward.answers import extract_answer, judge, judge_response, judge_text, normalise
from mstar_engine.types import Group, Problem, Response


def make_response(text: str, finish_reason: str = "stop", sample: int = 0) -> Response:
    none = np.zeros(0, np.float32)
    return Response(
        sample=sample,
        token_ids=np.zeros(0, np.int32),
        text=text,
        logprobs=none,
        scaled_logprobs=none,
        filtered_logprobs=none,
        entropy=none,
        finish_reason=finish_reason,
        temperature=1.0,
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Three and nine.\n\n# Answer\n12", "12"),
        ("# Answer\n\n 12 \n", "12"),
        ("# Answer 12", "12"),
        ("### answer: 12", "12"),
        ("# Answer\n13\n\n# Answer\n12", "12"),
        ("# Answer\n12\n\nI hope this helps", "12\n\nI hope this helps"),
        ("# Answer", None),
        ("# Answer\n  \n", None),
        ("# Answer\n12\n# Answer\n", None),
        ("12", None),
        ("The answer is 12", None),
        ("see # Answer 12", None),
        ("# Answers 12", None),
        ("Answer: 12", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("given_answer", "gold"),
    [
        ("12", "12"),
        ("12.", "12"),
        (" 12 ", "12."),
        ("+12", "12"),
        ("012", "12"),
        ("1,024", "1024"),
        ("-0", "0"),
        ("-7", "-7"),
        ("b", "B"),
        ("Red  Square.", "red square"),
        ("9" * 6000, "0" + "9" * 6000),
    ],
)
def test_equal_answers(given_answer, gold):
    assert judge_text(f"# Answer\n{given_answer}", gold).correct
    assert normalise(normalise(given_answer)) == normalise(given_answer)


@pytest.mark.parametrize(
    ("given_answer", "gold"),
    [
        ("12", "13"),
        ("12", "1"),
        ("112", "12"),
        ("12 13", "12"),
        ("12\n13", "12"),
        ("12 apples", "12"),
        ("12.0", "12"),
        ("-12", "12"),
        ("1,2", "12"),
        ("**12**", "12"),
        ("1 2", "12"),
        (".", "."),
        (".", ""),
        ("", ""),
        ("A B C D", "A"),
        ("\u0661\u0662", "12"),
    ],
)
def test_unequal_answers(given_answer, gold):
    assert not judge_text(f"# Answer\n{given_answer}", gold).correct


def test_verdicts_say_why():
    assert judge_text("12", "12").reason == "no answer"
    assert judge_text("# Answer\n.", "12").reason == "empty answer"
    assert judge_text("# Answer\n13", "12").reason == "mismatch"
    assert judge_text("# Answer\n12", "12").reason == "match"


@pytest.mark.parametrize("reason", ["length", "abort"])
def test_an_unfinished_response_is_wrong(reason):
    verdict = judge_response(make_response("# Answer\n1", reason), "1")
    assert not verdict.correct and verdict.answer == "1" and verdict.reason == f"unfinished ({reason})"


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
@settings(deadline=None)
def test_integers_are_equal_when_they_are(a, b):
    assert judge_text(f"# Answer\n{a}", str(b)).correct == (a == b)
    assert judge_text(f"# Answer\n{a:,}.", str(a)).correct


@given(st.text(), st.text())
@settings(deadline=None)
def test_comparison_is_equality_of_normal_forms(a, b):
    forwards = extract_answer(f"# Answer\n{a}")
    if forwards is not None and "#" not in a + b:
        assert judge_text(f"# Answer\n{a}", b).correct == (bool(normalise(a)) and normalise(a) == normalise(b))


def test_judge_fills_the_group():
    problem = Problem(id="p", question="?", gold="12")
    responses = tuple(make_response(text, sample=i) for i, text in enumerate(["# Answer\n12", "# Answer\n13", "none"]))
    judged = judge(Group(problem=problem, responses=responses, prompt_length=1))
    assert [r.correct for r in judged.responses] == [True, False, False]
    assert [r.answer for r in judged.responses] == ["12", "13", None]
    unlabelled = judge(Group(problem=Problem(id="p", question="?"), responses=responses, prompt_length=1))
    assert [r.correct for r in unlabelled.responses] == [None] * 3
    assert unlabelled.responses[0].answer == "12"
