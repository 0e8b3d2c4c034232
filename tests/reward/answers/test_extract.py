"""Where answers stand in responses."""

import pytest
from extraction_cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.answer_type import EXTRACTION_RULES
from mstar_engine.reward.extract import find_answer

ROWS = [(rules, text, wanted) for rules, rows in CASES for text, wanted in rows.items()]
LINES = st.text(st.characters(exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1)


@pytest.mark.parametrize(("rules", "text", "wanted"), ROWS)
def test_table(rules, text, wanted):
    found = find_answer(text, rules)
    assert (found and (found.text, found.rule)) == wanted


PIECES = st.sampled_from([*"ABb(){}[]\\#*:. \n", "boxed", "Answer", "the answer is"])


@given(st.lists(PIECES).map("".join), st.permutations(EXTRACTION_RULES))
@settings(deadline=None)
def test_an_answer_is_where_it_is_said_to_be(text, order):
    found = find_answer(text, tuple(order))
    assert found is not None, "the rule `whole` finds every text"
    assert text[found.begin : found.end] == found.text == found.text.strip()


@given(st.text(), LINES)
@settings(deadline=None)
def test_the_last_heading_counts_whatever_came_before(before, answer):
    found = find_answer(f"{before}\nAnswer: A\nAnswer: {answer}", ("heading",))
    nested = find_answer(answer, ("heading",))  # the answer may hold a heading itself
    assert answer.strip() == "" or nested is not None or found.text == answer.strip()


def test_letters_stop_at_the_last_choice():
    assert find_answer("(B) or (E)", ("letter",), 4).text == "B"
    assert find_answer("(B) or (E)", ("letter",), 5).text == "E"
