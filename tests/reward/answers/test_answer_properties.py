"""What must hold of every typed comparison."""

import string
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mstar_engine.answer_type import AnswerType, read_answer_type, write_answer_type
from mstar_engine.reward.golds import Gold, answer_key, compare, same_answer
from mstar_engine.reward.numerals import rounded
from mstar_engine.reward.typed import judge_typed
from mstar_engine.reward.verdict import EMPTY, MATCH, MISMATCH, REASONS

SPACES = st.text(" \t\n\u00a0\u3000\u200b\u200e", max_size=4)
CHOICES = ("a cat", "two dogs", "3", "none of these", "Été")
TYPES = [
    AnswerType(kind="choice"),
    AnswerType(kind="choice", choices=CHOICES),
    AnswerType(kind="choice", choices=CHOICES, choice_by="text"),
    AnswerType(kind="integer"),
    AnswerType(kind="integer", units=("cm", "$")),
    AnswerType(kind="float"),
    AnswerType(kind="float", precision=2),
    AnswerType(kind="float", precision=0, percent=True),
    AnswerType(kind="text"),
    AnswerType(kind="text", ignore_case=False),
    AnswerType(kind="list"),
    AnswerType(kind="list", ordered=False, ignore_case=False),
    AnswerType(kind="list", items="float", precision=1),
    AnswerType(kind="list", items="integer", ordered=False),
]
NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(-(10**12), 10**12).map("{:,}".format),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**6), max_value=10**6, places=4).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
ANSWERS = st.one_of(
    NUMBERS,
    st.sampled_from(
        [*string.ascii_uppercase, *CHOICES, "(B)", "(b) two dogs", "½", "50%", "$5", "3 cm", "nan", "inf", "1e3"]
    ),
    st.lists(NUMBERS, min_size=1, max_size=4).map("; ".join),
    st.text(max_size=12),
    st.text(string.printable + "½−１\u200b\u202e", max_size=12),
)
kinds = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: write_answer_type(kind))


def golds(kind: AnswerType) -> st.SearchStrategy[str]:
    """Reference answers, most of which the type can read."""
    letters = string.ascii_uppercase[: len(kind.choices) or 26]
    choices = [*letters, *kind.choices, *(f"({one.lower()})" for one in letters)]
    return {"choice": st.sampled_from(choices), "integer": st.integers().map(str), "float": NUMBERS}.get(
        kind.kind, ANSWERS
    )


def gold_or_none(value, kind):
    try:
        return Gold(value, kind)
    except ValueError:
        return None


@kinds
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_gold_matches_itself(kind, data):
    value = data.draw(golds(kind))
    gold = gold_or_none(value, kind)
    assume(gold is not None)
    assert compare(value, gold) == MATCH
    assert same_answer(value, value, kind)
    if "\n" not in value and "\r" not in value:
        assert judge_typed(f"Steps.\n# Answer\n{value}", gold).correct


@kinds
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_comparison_is_symmetric_and_total(kind, data):
    one, other = data.draw(golds(kind)), data.draw(golds(kind) | ANSWERS)
    left, right = gold_or_none(one, kind), gold_or_none(other, kind)
    if left is not None:
        assert compare(other, left) in REASONS
    if left is not None and right is not None:
        assert compare(one, right) == compare(other, left) in (MATCH, MISMATCH)


@kinds
@given(value=ANSWERS, before=SPACES, after=SPACES)
@settings(deadline=None, max_examples=60)
def test_white_space_around_an_answer_changes_nothing(kind, value, before, after):
    assert answer_key(before + value + after, kind) == answer_key(value, kind)


@kinds
@given(value=ANSWERS)
@settings(deadline=None, max_examples=60)
def test_case_counts_only_where_the_type_says_so(kind, value):
    ascii_only = value.encode("ascii", "ignore").decode()
    words = kind.kind in ("choice", "text") or (kind.kind == "list" and kind.items == "text")
    if words and kind.ignore_case and "\\" not in value:  # case counts in a command's name
        assert answer_key(ascii_only.upper(), kind) == answer_key(ascii_only.lower(), kind)


@kinds
@given(empty=SPACES, data=st.data())
@settings(deadline=None, max_examples=30)
def test_an_empty_answer_never_matches(kind, empty, data):
    gold = gold_or_none(data.draw(golds(kind)), kind)
    assume(gold is not None)
    for nothing in (empty, f"{empty}.", f"{empty}..."):
        assert compare(nothing, gold) == EMPTY
        assert not judge_typed(f"# Answer\n{nothing}", gold).correct
        assert gold_or_none(nothing, kind) is None


@kinds
@given(data=st.data(), word=st.text(string.ascii_letters, min_size=2, max_size=8))
@settings(deadline=None, max_examples=60)
def test_one_more_word_is_wrong(kind, data, word):
    value = data.draw(golds(kind))
    gold = gold_or_none(value, kind)
    assume(gold is not None and word.lower() not in ("cm", "percent", "option", "choice"))
    assert compare(f"{value} {word}", gold) != MATCH
    # "option B" is a choice in other words.
    assert compare(f"{word} {value}", gold) != MATCH


@given(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
@settings(deadline=None)
def test_integers_are_equal_when_they_are(one, other):
    kind = AnswerType(kind="integer")
    assert same_answer(f"{one}", f"{other}", kind) == (one == other)
    assert same_answer(f"{one:,}.", f"{one}.0", kind)
    assert compare(f"{one}", Gold(f"{one + 1}", kind)) == MISMATCH


@given(st.fractions(-1000, 1000, max_denominator=999), st.integers(0, 6))
@settings(deadline=None)
def test_floats_are_equal_to_their_rounding(value, precision):
    kind = AnswerType(kind="float", precision=precision)
    near = rounded(value, precision)
    assert abs(near - value) * 2 * 10**precision <= 1
    digits = str(int(abs(near) * 10**precision)).zfill(precision + 1)
    written = f"{'-' if near < 0 else ''}{digits[: len(digits) - precision]}.{digits[len(digits) - precision :]}"
    assert same_answer(f"{value.numerator}/{value.denominator}", written, kind)
    assert not same_answer(written, str(Fraction(near) + 2 * Fraction(1, 10**precision)), kind)


@given(st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1, max_size=5), st.randoms())
@settings(deadline=None)
def test_order_counts_only_where_the_type_says_so(items, random):
    mixed = list(items)
    random.shuffle(mixed)
    assert same_answer(", ".join(items), f"[{'; '.join(mixed)}]", AnswerType(kind="list", ordered=False))
    assert same_answer(", ".join(items), ", ".join(mixed), AnswerType(kind="list")) == (items == mixed)


@kinds
def test_types_come_back_from_text(kind):
    assert read_answer_type(write_answer_type(kind)) == kind
    assert read_answer_type(write_answer_type(None)) is None


@pytest.mark.parametrize(
    ("given_fields", "words"),
    [
        ({"kind": "number"}, "kind='number'; allowed: choice, integer"),
        ({"kind": "choice", "choices": "abc"}, "choices='abc'; allowed: several texts"),
        ({"kind": "choice", "choices": ("a", " ")}, "no empty text"),
        ({"kind": "choice", "choices": ("x",) * 27}, "at most 26"),
        ({"kind": "integer", "choices": ("a",)}, "none, with this kind"),
        ({"kind": "integer", "precision": 1}, "precision=1; allowed: none"),
        ({"kind": "float", "precision": -1}, "precision=-1; allowed: 0 to 30"),
        ({"kind": "float", "precision": 1.5}, "precision=1.5"),
        ({"kind": "float", "percent": True, "units": ("%",)}, "beside the unit %"),
        ({"kind": "text", "units": ("cm",)}, "units"),
        ({"kind": "integer", "ignore_case": False}, "ignore_case"),
        ({"kind": "text", "extract": ()}, "one or more of section"),
        ({"kind": "text", "extract": ("boxed", "boxed")}, "each once"),
        ({"kind": "text", "extract": ("guess",)}, "guess"),
        ({"kind": "text", "variant": "m3cot"}, "strict or mathvista"),
        ({"kind": "choice", "variant": "m3cot"}, "without choices"),
        ({"kind": "latex", "variant": "mathvista"}, "strict or mathvista"),
    ],
)
def test_types_that_cannot_be_read_are_refused(given_fields, words):
    with pytest.raises(ValueError, match="AnswerType: ") as error:
        AnswerType(**given_fields)
    assert words in str(error.value)


@pytest.mark.parametrize("line", ["{", '{"kind": "text", "colour": 1}', "[]", "1"])
def test_other_text_is_no_type(line):
    with pytest.raises(ValueError):
        read_answer_type(line)
