"""Configured answer rules: used where a type permits, said where not, refused where they change nothing."""

import pytest

from mstar_engine.answer_type import EXTRACTION_RULES, VARIANTS, AnswerType
from mstar_engine.config import AnswersConfig
from mstar_engine.reward.answer_rules import use_answers, with_rules
from mstar_engine.reward.answers import bare_answer, judge_text
from mstar_engine.types import Problem

CHOICE = AnswerType(kind="choice", choices=("an A", "a B", "e", "answer"))
INTEGER, LATEX = AnswerType(kind="integer"), AnswerType(kind="latex")
TYPES = [
    (CHOICE, "B"), (CHOICE, "a B"), (INTEGER, "7"), (AnswerType(kind="float", precision=1), "2.5"),
    (AnswerType(kind="text"), "a cat"), (AnswerType(kind="list", items="integer"), "[1, 2]"),
]  # fmt: skip


def problem(answer_type: AnswerType | None, gold: str | None = "B", name: str = "p") -> Problem:
    return Problem(id=name, question="?", gold=gold, answer_type=answer_type)


def sets_of(**sets: list[Problem]) -> dict[str, list[Problem]]:
    return {f"{name} set": problems for name, problems in sets.items()}


def test_the_defaults_change_nothing():
    data = sets_of(train=[problem(CHOICE), problem(None)])
    assert use_answers(data, AnswersConfig()) == (data, [])


def test_extraction_is_laid_over_every_typed_problem():
    data = sets_of(train=[problem(CHOICE), problem(INTEGER, "7"), problem(None)], test=[problem(CHOICE, None)])
    found, lines = use_answers(data, AnswersConfig(extract=["letter", "heading"]))
    assert lines == [] and found["train set"][2].answer_type is None
    # What is no choice has no letter to find.
    assert [one.answer_type.extract for one in found["train set"][:2]] == [("letter", "heading"), ("heading",)]
    assert found["test set"][0].answer_type == found["train set"][0].answer_type
    assert judge_text("It is (B).", "B", found["train set"][0].answer_type).correct
    assert not judge_text("It is (B).", "B", CHOICE).correct
    (only,), _ = with_rules([problem(INTEGER, "7")], AnswersConfig(extract=["letter"]))
    assert only.answer_type == INTEGER


def test_what_a_variant_cannot_judge_stays_strict_and_is_said():
    bare = AnswerType(kind="choice")
    train = [problem(CHOICE), problem(INTEGER, "7"), problem(INTEGER, "8"), problem(bare), problem(None)]
    found, lines = use_answers(sets_of(train=train, ood=[problem(CHOICE)]), AnswersConfig(variant="m3cot"))
    assert [one.answer_type and one.answer_type.variant for one in found["train set"]] == [
        "m3cot",
        *["strict"] * 3,
        None,
    ]
    assert lines == [
        "answers.variant=m3cot, train set: 3 of 5 problems stay strict (integer 2, choice without its texts 1)"
    ]
    assert judge_text("I say B", "B", found["ood set"][0].answer_type).correct
    assert not judge_text("I say B", "B", CHOICE).correct


def test_a_gold_that_the_variants_own_rule_refuses_stays_strict():
    train = [problem(INTEGER, "1,024"), problem(INTEGER, "1024"), problem(LATEX, "x")]
    found, lines = use_answers(sets_of(train=train), AnswersConfig(variant="mathvista"))
    assert [one.answer_type.variant for one in found["train set"]] == ["strict", "mathvista", "strict"]
    assert "(integer that its own rule refuses 1, latex 1)" in lines[0]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {"variant": "vlmevalkit"},
            "answers.variant=vlmevalkit: it can judge no problem; allowed: strict. .*integer 1",
        ),
        ({"variant": "m3cot"}, "it can judge no problem"),
    ],
)
def test_a_variant_for_nothing_is_refused(answers, said):
    with pytest.raises(ValueError, match=said):
        use_answers(sets_of(train=[problem(INTEGER, "7")]), AnswersConfig(**answers))


@pytest.mark.parametrize("answers", [{"variant": "mathvista"}, {"extract": ["boxed", "heading"]}])
def test_rules_for_problems_without_a_type_are_refused(answers):
    with pytest.raises(ValueError, match=r"answers\.(variant=mathvista|extract=\[boxed, heading\]): no problem says"):
        use_answers(sets_of(train=[problem(None)], test=[problem(None)]), AnswersConfig(**answers))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", EXTRACTION_RULES)
def test_what_a_policy_is_taught_to_write_is_right_by_the_rules_in_force(rule, variant):
    problems = [problem(answer_type, gold) for answer_type, gold in TYPES]
    found, _ = with_rules(problems, AnswersConfig(extract=[rule], variant=variant))
    for one in found:
        assert judge_text(bare_answer(one.gold, one.answer_type), one.gold, one.answer_type).correct, one
