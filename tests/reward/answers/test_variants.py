"""Whose rules: the same responses under each of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.answer_type import VARIANTS, AnswerType
from mstar_engine.reward.golds import Gold
from mstar_engine.reward.typed import judge_typed
from mstar_engine.reward.variants import JUDGES, edit_distance
from mstar_engine.reward.verdict import (
    EMPTY,
    MATCH,
    MISMATCH,
    NO_ANSWER,
    NOT_A_CHOICE,
    NOT_A_NUMBER,
    NOT_AN_INTEGER,
    REASONS,
)

ANIMALS = ("a cat", "a dog", "a horse", "none")


def reason(variant, text, value, **fields):
    return judge_typed(text, Gold(value, AnswerType(variant=variant, **fields))).reason


@pytest.mark.parametrize(
    ("text", "value", "strict", "mathvista", "m3cot", "vlmevalkit"),
    [
        ("Answer: (B)", "B", MATCH, MATCH, MATCH, MATCH),
        ("Answer: B", "B", MATCH, MATCH, MATCH, MATCH),
        ("Answer: a dog", "B", MATCH, MATCH, MATCH, MATCH),
        ("Answer: (A)", "B", MISMATCH, MISMATCH, MISMATCH, MISMATCH),
        ("(B)", "B", NO_ANSWER, MATCH, MATCH, MATCH),
        ("B", "B", NO_ANSWER, MATCH, MATCH, MATCH),
        ("a dog", "B", NO_ANSWER, MATCH, MATCH, MATCH),
        ("a dogg", "B", NO_ANSWER, MATCH, MATCH, MATCH),
        ("the dog", "B", NO_ANSWER, MATCH, NO_ANSWER, NO_ANSWER),
        ("I think (A) but actually (C)", "C", NO_ANSWER, MISMATCH, MATCH, NO_ANSWER),
        ("I think (A) but actually (C)", "A", NO_ANSWER, MATCH, MISMATCH, NO_ANSWER),
        ("a dog or a horse", "C", NO_ANSWER, MATCH, MATCH, NO_ANSWER),
        ("Answer: A or B", "B", NOT_A_CHOICE, MISMATCH, MATCH, NO_ANSWER),
        ("B is what I would say here, surely", "B", NO_ANSWER, MISMATCH, MATCH, NO_ANSWER),
        ("I would say B", "B", NO_ANSWER, MISMATCH, MATCH, MATCH),
        ("[Answer] (B) [Rationale] (A)", "B", NO_ANSWER, MATCH, MATCH, NO_ANSWER),
        ("(A) [Answer] b", "B", NO_ANSWER, MISMATCH, MATCH, MISMATCH),
        ("(E)", "B", NO_ANSWER, MISMATCH, NOT_A_CHOICE, NO_ANSWER),
        ('The answer is "a dog".', "B", NOT_A_CHOICE, MATCH, MATCH, MATCH),
        ("", "B", NO_ANSWER, EMPTY, NO_ANSWER, NO_ANSWER),
    ],
)
def test_choices(text, value, strict, mathvista, m3cot, vlmevalkit):
    found = [reason(variant, text, value, kind="choice", choices=ANIMALS) for variant in VARIANTS]
    assert dict(zip(VARIANTS, found)) == dict(zip(VARIANTS, (strict, mathvista, m3cot, vlmevalkit)))


@pytest.mark.parametrize(
    ("text", "value", "fields", "strict", "mathvista"),
    [
        ("Answer: 12", "12", {"kind": "integer"}, MATCH, MATCH),
        ("12", "12", {"kind": "integer"}, NO_ANSWER, MATCH),
        ("Answer: 12.7", "12", {"kind": "integer"}, NOT_AN_INTEGER, MATCH),
        ("Answer: 1,200", "1200", {"kind": "integer"}, MATCH, NOT_AN_INTEGER),
        ("Answer: 12 apples", "12", {"kind": "integer"}, "more than a number", NOT_AN_INTEGER),
        ("Answer: inf", "12", {"kind": "integer"}, NOT_A_NUMBER, NOT_AN_INTEGER),
        ("Answer: nan", "1.5", {"kind": "float", "precision": 1}, NOT_A_NUMBER, MISMATCH),
        ("Answer: 1.54", "1.5", {"kind": "float", "precision": 1}, MATCH, MATCH),
        ("Answer: 2.675", "2.68", {"kind": "float", "precision": 2}, MATCH, MISMATCH),
        ("Answer: 3/2", "1.5", {"kind": "float", "precision": 1}, MATCH, NOT_A_NUMBER),
        ("Answer: [1, 2]", "[1, 2]", {"kind": "list", "items": "integer"}, MATCH, MATCH),
        ("Answer: [1,2]", "[1, 2]", {"kind": "list", "items": "integer"}, MATCH, MISMATCH),
        ("Answer: Red", "red", {"kind": "text"}, MATCH, MISMATCH),
        ("Answer: red", "red", {"kind": "text"}, MATCH, MATCH),
    ],
)
def test_other_kinds(text, value, fields, strict, mathvista):
    assert (reason("strict", text, value, **fields), reason("mathvista", text, value, **fields)) == (strict, mathvista)


@pytest.mark.parametrize("variant", JUDGES)
@given(text=st.text(st.characters() | st.sampled_from("ABCDabcd()[]. "), max_size=60))
@settings(deadline=None)
def test_every_verdict_gives_a_known_reason(variant, text):
    gold = Gold("B", AnswerType(kind="choice", choices=ANIMALS, variant=variant))
    verdict = judge_typed(text, gold)
    assert verdict.reason in REASONS and verdict.correct == (verdict.reason == MATCH)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
@settings(deadline=None)
def test_edit_distance_is_a_distance(one, other, third):
    assert (edit_distance(one, other) == 0) == (one == other)
    assert edit_distance(one, other) == edit_distance(other, one) <= max(len(one), len(other))
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)
    assert edit_distance("kitten", "sitting") == 3
