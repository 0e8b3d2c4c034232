"""Reference answers as data sets give them, to the text and the type that verdicts rest on.

A gold that its type cannot hold is a flaw of its row: a run that learned from it would learn something wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from mstar_engine.answer_type import KINDS, MAX_CHOICES, MAX_PRECISION, AnswerType
from mstar_engine.data.flaw import Flaw, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What programs write where there was nothing, never an answer.
_NOTHING = {"nan", "null", "<na>", "undefined"}
_LONGEST_NUMBER = 100
_FRACTION = re.compile(r"\s*[+-]?\d+\s*/\s*[+-]?(\d+)\s*")
_INTEGER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.0*)?")
_WHOLE = re.compile(r"\d{1,9}(\.0*)?")
_KINDS = {
    **{kind: kind for kind in KINDS},
    "multi_choice": "choice",
    "multiple_choice": "choice",
    "multiple-choice": "choice",
    "mcq": "choice",
    "int": "integer",
    "number": "float",
    "string": "text",
    "str": "text",
    "free_form": "text",
}


def read_gold(
    value: Any, *, kind: Any, choices: Any, precision: Any, unit: Any, fields: dict[str, str]
) -> tuple[str, AnswerType | None]:
    """The gold as text and its type, None when the row says nothing about it. Flaw, by the row's names in `fields`.

    A choice may be given by its letter or by its text, and becomes the letter; one that would be another choice either
    way is refused.
    """
    choices = _choices(choices, fields["choices"])
    kind = _kind(kind, fields["answer_type"]) or ("choice" if choices else None)
    text = _text(value, kind, fields["gold"])
    if kind is None:
        return text, None
    if kind == "choice":
        return _letter(text, choices, fields["gold"]), AnswerType(kind="choice", choices=choices)
    if kind in ("integer", "float") and len(text) > _LONGEST_NUMBER:
        raise Flaw("bad gold", fields["gold"], f"{len(text)} characters; allowed for a number: {_LONGEST_NUMBER}")
    if kind == "integer" and _INTEGER.fullmatch(text) is None:
        raise Flaw("bad gold", fields["gold"], f"{shown(text)} is no integer")
    if kind == "float" and not _is_finite(text):
        raise Flaw("bad gold", fields["gold"], f"{shown(text)} is no finite number")
    if kind == "list" and not text.strip("[](){} ,;"):
        raise Flaw("bad gold", fields["gold"], f"{shown(text)} has no items")
    return text, AnswerType(
        kind=kind,
        precision=_precision(precision, fields["precision"]) if kind == "float" else None,
        units=_units(unit, fields["unit"]) if kind in ("integer", "float") else (),
    )


def is_absent(value: Any) -> bool:
    """Whether a field is there only in form: null, NaN, empty."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, kind: str | None, field: str) -> str:
    if is_absent(value):
        raise Flaw("bad gold", field, "no reference answer" if value is None or value == "" else "NaN")
    if isinstance(value, bool) or not isinstance(value, (str, int, float, list, tuple)):
        raise Flaw("bad gold", field, f"{shown(value)} is neither text nor a number")
    if isinstance(value, (list, tuple)):
        if kind != "list":
            raise Flaw("bad gold", field, f"{shown(value)} is a list; allowed with answer_type list")
        if not value or not all(map(_is_item, value)):
            raise Flaw("bad gold", field, f"{shown(value)} is no list of texts or numbers")
        return json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value):
        raise Flaw("bad gold", field, f"{value} is not finite")
    text = plain_text(_written(value), "bad gold", field).strip()
    if not text or text.casefold() in _NOTHING:
        raise Flaw("bad gold", field, f"{shown(text)} is no answer")
    return text


def _is_item(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _written(value: str | int | float) -> str:
    """A text, or a number as golds and choices write it alike: whole ones without decimals."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value)


def plain_text(text: str, reason: Any, field: str) -> str:
    """The text itself; a flaw when it has characters that no text has: half of a surrogate pair, or a zero byte."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Flaw(reason, field, f"{shown(text)}: no text at character {error.start}") from None
    if "\0" in text:
        raise Flaw(reason, field, f"{shown(text)}: a zero byte")
    return text


def _choices(value: Any, field: str) -> tuple[str, ...]:
    """The choices' texts; a mapping from letters to texts is taken in the order of its letters."""
    if is_absent(value):
        return ()
    if isinstance(value, dict):
        if list(value) != list(LETTERS[: len(value)]):
            raise Flaw("bad choices", field, f"{shown(value)}: letters that are not A, B, C, ... in order")
        value = list(value.values())
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise Flaw("bad choices", field, f"{shown(value)} is no list")
    if len(value) > MAX_CHOICES:
        raise Flaw("bad choices", field, f"{len(value)} choices; allowed: at most {MAX_CHOICES}")
    if not value:
        return ()
    if len(value) == 1:
        raise Flaw("bad choices", field, "one choice; allowed: none, or two and more")
    texts = []
    for item in value:
        if isinstance(item, bool) or is_absent(item) or not isinstance(item, (str, int, float)):
            raise Flaw("bad choices", field, f"{shown(item)} is no choice")
        text = plain_text(_written(item), "bad choices", field).strip()
        if not text:
            raise Flaw("bad choices", field, "an empty choice")
        texts.append(text)
    return tuple(texts)


def _kind(value: Any, field: str) -> str | None:
    if is_absent(value):
        return None
    if not isinstance(value, str) or value.casefold() not in _KINDS:
        raise Flaw("bad type", field, f"{shown(value)}; allowed: {', '.join(KINDS)}")
    return _KINDS[value.casefold()]


def _letter(text: str, choices: tuple[str, ...], field: str) -> str:
    """The letter of the choice that a gold names."""
    bare = text.strip("(). ")
    letter = bare.upper() if len(bare) == 1 and bare.upper() in LETTERS else None
    if not choices:
        if letter is None:
            raise Flaw("bad gold", field, f"{shown(text)} is no letter, and the row has no choices")
        return letter
    places = [place for place, choice in enumerate(choices) if _folded(choice) == _folded(text)]
    by_text = LETTERS[places[0]] if places else None
    by_letter = letter if letter and letter in LETTERS[: len(choices)] else None
    if by_text and by_letter and by_text != by_letter:
        raise Flaw("bad gold", field, f"{shown(text)} is the letter of one choice and the text of another")
    if by_text is None and by_letter is None:
        raise Flaw("bad gold", field, f"{shown(text)} is none of {len(choices)} choices")
    return by_letter or by_text


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "").removesuffix("%")))
    except ValueError:
        fraction = _FRACTION.fullmatch(text)  # a number too
        return fraction is not None and int(fraction[1]) != 0


def _precision(value: Any, field: str) -> int | None:
    if is_absent(value):
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_PRECISION or value != int(value):
        raise Flaw("bad type", field, f"{shown(value)} decimals; allowed: 0 to {MAX_PRECISION}")
    return int(value)


def _units(value: Any, field: str) -> tuple[str, ...]:
    if is_absent(value):
        return ()
    if not isinstance(value, str) or not value.strip():
        raise Flaw("bad type", field, f"{shown(value)} is no unit")
    return (plain_text(value, "bad type", field).strip(),)
