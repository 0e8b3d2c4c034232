"""Typed reference answers, and the comparison of answers by what they mean.

Every kind but LaTeX has a *key*: two answers are the same when their keys are. So comparison is symmetric and
transitive, an answer always matches itself, and votes can be counted. An answer that its kind cannot read has no key
and is wrong; the reason says why. Nothing is searched for inside an answer: one word too many is wrong.

choice   A letter ("B", "(b)", "B.", "option B"), a choice's text, or both where they agree ("(B) cat"). Equal texts
         are one choice.
integer  A whole number by value: "1,024", "+7", "3.0" and "1e3" are; "3.5", "6/2" and "3 apples" are not.
float    A number by value after rounding to the precision; fractions and mixed numbers are numbers.
text     The text, white space and (unless told otherwise) case aside, without one trailing dot.
list     Items between brackets or none, separated by semicolons or, where there are none, by commas.
latex    By math-verify, in a process of its own (`reward/latex.py`), which sees formulas only (`reward/latex_form.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward import latex, verdict
from mstar_engine.reward.answer_text import MAX_LENGTH, clean, strip_markup
from mstar_engine.reward.latex_form import more_than_a_formula
from mstar_engine.reward.numerals import Number, read_number, rounded

_LETTER = re.compile(r"(?:(?:the |an )?(?:option|choice) )?(?:\(([a-z])\)|\[([a-z])\]|([a-z]))[.):]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([a-z])\)[.:]?|\[([a-z])\][.:]?|([a-z])[.):]) ?(\S.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Key:
    """What an answer means within its type, as text; `reason` instead where it means nothing."""

    value: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Gold:
    """A reference answer that its type can read. ValueError when it cannot, or for LaTeX without math-verify."""

    value: str
    type: AnswerType
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Read the value once."""
        if self.type.kind == "latex":
            latex.require()
        found = answer_key(self.value, self.type)
        if found.value is None:
            raise ValueError(f"reference answer {self.value[:60]!r}: {found.reason}; needed: {self.type.kind}")
        object.__setattr__(self, "key", found.value)


@lru_cache(maxsize=4096)
def gold_of(value: str, answer_type: AnswerType) -> Gold:
    """`Gold(value, answer_type)`, kept: the responses of a group share one."""
    return Gold(value, answer_type)


def answer_key(answer: str, answer_type: AnswerType) -> Key:
    """The key of an answer that was found; for LaTeX its spelling, of which equality is sufficient only."""
    if len(answer) > MAX_LENGTH:
        return Key(None, verdict.TOO_LONG)
    text = strip_markup(clean(answer))
    if not text.strip("."):
        return Key(None, verdict.EMPTY)
    return _KEYS[answer_type.kind](text, answer_type)


def compare(answer: str, gold: Gold) -> str:
    """The reason of the verdict on an answer; `verdict.MATCH` when it is right."""
    key = answer_key(answer, gold.type)
    if key.value is None:
        return key.reason
    if key.value == gold.key:
        return verdict.MATCH
    if gold.type.kind != "latex":
        return verdict.MISMATCH
    if more_than_a_formula(key.value, gold.key):
        return verdict.MORE_THAN_A_FORMULA
    return latex.compare(key.value, gold.key)


def same_answer(one: str, other: str, answer_type: AnswerType) -> bool:
    """Whether two answers mean the same; by spelling where they are LaTeX."""
    key = answer_key(one, answer_type).value
    return key is not None and key == answer_key(other, answer_type).value


def _choice(text: str, answer_type: AnswerType) -> Key:
    texts = _choice_texts(answer_type)
    by_text = texts.get(_text_form(text))
    letter = _LETTER.fullmatch(text)
    by_letter = _known(letter[1] or letter[2] or letter[3], answer_type) if letter else None
    first, second = (by_text, by_letter) if answer_type.choice_by == "text" else (by_letter, by_text)
    if first or second:
        return Key(first or second)
    both = _LETTER_AND_TEXT.fullmatch(text)
    if both and texts:
        by_letter, by_text = _known(both[1] or both[2] or both[3], answer_type), texts.get(_text_form(both[4]))
        if by_letter and by_text:
            return Key(by_letter) if by_letter == by_text else Key(None, verdict.CONTRADICTION)
    return Key(None, verdict.NOT_A_CHOICE)


@lru_cache(maxsize=4096)
def _choice_texts(answer_type: AnswerType) -> dict[str, str]:
    """Letter by the choice's text; the first of equal texts."""
    texts: dict[str, str] = {}
    for place, text in enumerate(answer_type.choices):
        texts.setdefault(_text_form(strip_markup(clean(text))), chr(ord("A") + place))
    return texts


def _known(letter: str, answer_type: AnswerType) -> str | None:
    """The letter if there is such a choice; that of the first choice with the same text."""
    place = ord(letter.upper()) - ord("A")
    if not answer_type.choices:
        return letter.upper()
    if place >= len(answer_type.choices):
        return None
    return _choice_texts(answer_type)[_text_form(strip_markup(clean(answer_type.choices[place])))]


def _text_form(text: str) -> str:
    return text.casefold()


def _text(text: str, answer_type: AnswerType) -> Key:
    return Key(_text_form(text) if answer_type.ignore_case else text)


def _integer(text: str, answer_type: AnswerType) -> Key:
    number = read_number(text, answer_type.units)
    if not isinstance(number, Number):
        return Key(None, number)
    if number.form == "fraction" or number.value.denominator != 1:
        return Key(None, verdict.NOT_AN_INTEGER)
    return Key(str(number.value.numerator))


def _float(text: str, answer_type: AnswerType) -> Key:
    number = read_number(text, answer_type.units, answer_type.percent)
    return Key(str(rounded(number.value, answer_type.precision))) if isinstance(number, Number) else Key(None, number)


_BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"), ("\\{", "\\}"))


def _list(text: str, answer_type: AnswerType) -> Key:
    for begin, end in _BRACKETS:
        if text.startswith(begin) and text.endswith(end) and _closes_last(text, begin, end):
            text = text[len(begin) : -len(end)].strip()
            break
    items = [item.strip() for item in text.split(";" if ";" in text else ",")]
    keys = []
    for item in items:
        item = strip_markup(_unquoted(item))
        if not item.strip("."):
            return Key(None, verdict.EMPTY if len(items) == 1 else verdict.NOT_A_LIST)
        key = {"text": _text, "integer": _integer, "float": _float}[answer_type.items](item, answer_type)
        if key.value is None:
            return key
        keys.append(key.value)
    # Lengths keep items apart, whatever characters they hold.
    return Key(";".join(f"{len(key)}:{key}" for key in (keys if answer_type.ordered else sorted(keys))))


def _closes_last(text: str, begin: str, end: str) -> bool:
    """Whether the bracket that begins the text closes at its end only: not so in "(1), (2)"."""
    depth = 0
    for bracket in re.finditer(rf"{re.escape(begin)}|{re.escape(end)}", text[: -len(end)]):
        depth += 1 if bracket[0] == begin else -1
        if depth == 0:
            return False
    return True


def _unquoted(item: str) -> str:
    for quote in "'\"":
        if len(item) >= 2 and item[0] == item[-1] == quote:
            return item[1:-1].strip()
    return item


# What would let math-verify see several answers, of which one has to be right.
_SEVERAL = re.compile(r"(?<!\\)\$|\\boxed|\\[()\[\]]")


def _latex(text: str, answer_type: AnswerType) -> Key:
    return Key(None, verdict.UNREADABLE) if _SEVERAL.search(text) else Key(text)


_KEYS = {"choice": _choice, "integer": _integer, "float": _float, "text": _text, "list": _list, "latex": _latex}
