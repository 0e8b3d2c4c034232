"""Every kind of answer against tables written by hand, and the reasons that verdicts give."""

import choice_cases
import float_cases
import integer_cases
import latex_cases
import pytest
import text_cases

from mstar_engine.reward import latex
from mstar_engine.reward.golds import Gold, compare
from mstar_engine.reward.verdict import REASONS

TABLES = {
    "choice": choice_cases.CASES,
    "integer": integer_cases.CASES,
    "float": float_cases.CASES,
    "text": text_cases.CASES,
    "latex": latex_cases.CASES,
}
ROWS = [
    pytest.param(
        *row,
        id=f"{name}-{place}",
        marks=[pytest.mark.skipif(not latex.installed(), reason="needs math-verify")] if name == "latex" else [],
    )
    for name, cases in TABLES.items()
    for place, row in enumerate(cases)
]


@pytest.mark.parametrize(("value", "answer_type", "answers"), ROWS)
def test_table(value, answer_type, answers):
    gold = Gold(value, answer_type)
    found = {answer: compare(answer, gold) for of_reason in answers.values() for answer in of_reason}
    wanted = {answer: reason for reason, of_reason in answers.items() for answer in of_reason}
    wrong = {answer[:80]: (reason, found[answer]) for answer, reason in wanted.items() if found[answer] != reason}
    assert not wrong, f"gold {value!r}: answer: (wanted, found): {wrong}"


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_large_and_say_each_thing_once(name):
    cases = [
        (value, kind, answer) for value, kind, answers in TABLES[name] for rows in answers.values() for answer in rows
    ]
    assert len(set(cases)) == len(cases) >= 300
    assert {reason for _, _, answers in TABLES[name] for reason in answers} <= set(REASONS)
