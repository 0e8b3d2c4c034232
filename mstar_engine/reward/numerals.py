"""Numbers as people and policies write them, read exactly: no float is ever made.

Read are: signs, digits with well-formed thousands commas, decimals, exponents, fractions
(3/4, \\frac{3}{4}, ½), mixed numbers (3 1/2, 3½), percent signs, and units that the caller names. Everything in the
text must be part of the number: "12 apples" and "12 13" are none. Names of no finite number (nan, inf) are none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from mstar_engine.reward import verdict
from mstar_engine.reward.answer_text import clean, strip_markup

MAX_DIGITS = 400
"""A number of more digits, or with an exponent beyond this, is not read: arithmetic on it would take too long."""
_SIGN = r"(?P<sign>[+-] ?)?"
_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3}){1,140}|[0-9]{1,400}"
_DECIMAL = re.compile(
    rf"{_SIGN}(?P<whole>{_WHOLE})?(?:\.(?P<part>[0-9]{{0,400}}))?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,4})"
    r"| ?(?:\*|x|\u00d7|\\times|\\cdot) ?10\^(?:(?P<power>[+-]?[0-9]{1,4})|\{(?P<braced>[+-]?[0-9]{1,4})\}))?"
)
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>[0-9]{{1,400}})(?: |(?=\\)))?"
    r"(?:(?P<top>[0-9]{1,400}) ?/ ?(?P<bottom>[0-9]{1,400})"
    r"|\\[dt]?frac ?(?:\{ ?(?P<inner>-?) ?(?P<ltop>[0-9]{1,400}) ?\} ?\{ ?(?P<lbottom>[0-9]{1,400}) ?\}"
    r"|(?P<digit>[0-9])(?P<under>[0-9])))"
)
_NUMBER_AND_MORE = re.compile(
    r"[+-]? ?[$€£¥₹₩]? ?\.?[0-9][0-9.,]{0,400}(?:[ /][0-9][0-9.,]{0,400}){0,2}"
    r"(?:[eE][+-]?[0-9]{1,12}|(?![eE][+-]?[0-9])) ?[^\s0-9.,/+]"
    r"|[+-]? ?[$€£¥₹₩] ?\.?[0-9]"
)
_VULGAR = re.compile(r"(?<=[0-9]) ?([\u00bc-\u00be\u2150-\u215e\u2189])|([\u00bc-\u00be\u2150-\u215e\u2189])")
_UNIT_NAMES = {
    "°": ("°", "degrees", "degree", "deg", "^\\circ", "^{\\circ}", "\\degree"),
    "%": ("%", "\\%", "percent", "per cent"),
}
# Written before the number; any other unit is written behind it.
_CURRENCY = ("$", "€", "£", "¥", "₹", "₩", "US$")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as read. `form` is "whole", "decimal" or "fraction": how it was written."""

    value: Fraction
    form: str


def read_number(text: str, units: tuple[str, ...] = (), percent: bool = False) -> Number | str:
    """The number that a text is, or the reason why it is none (`NOT_A_NUMBER`, `MORE_THAN_A_NUMBER`).

    `units` may stand beside it and change nothing; with `percent` a percent sign divides by 100.
    """
    text = strip_markup(clean(text))
    number = _bare(text)
    if number is not None:
        return number
    for unit in units:
        for name in _UNIT_NAMES.get(unit, (unit,)):
            number = _bare(strip_markup(_without(text, clean(name))))
            if number is not None:
                return number
    if percent:
        for name in _UNIT_NAMES["%"]:
            number = _bare(strip_markup(_without(text, name)))
            if number is not None:
                return Number(number.value / 100, "decimal" if number.form == "whole" else number.form)
    return verdict.MORE_THAN_A_NUMBER if _NUMBER_AND_MORE.match(_spelled(text)) else verdict.NOT_A_NUMBER


def _without(text: str, unit: str) -> str:
    """The text without the unit beside it; nothing when the unit is not there."""
    for written in (unit, f"\\text{{{unit}}}", f"\\text{{ {unit}}}", f"\\mathrm{{{unit}}}", f"\\mathrm{{ {unit}}}"):
        if text.endswith(written):
            return text[: -len(written)].rstrip().removesuffix("\\,").removesuffix("~").rstrip()
    if unit in _CURRENCY:
        sign = "-" if text.startswith("-") else ""
        rest = text[len(sign) :].lstrip()
        for written in (f"\\{unit}", unit):
            if rest.startswith(written):
                return sign + rest[len(written) :].lstrip()
    return ""


def _bare(text: str) -> Number | None:
    """The number that the whole text is."""
    if not text or len(text) > 3 * MAX_DIGITS:
        return None
    text = _spelled(text)
    decimal = _DECIMAL.fullmatch(text)
    if decimal is not None and (decimal["whole"] or decimal["part"]):
        return _decimal(decimal)
    fraction = _FRACTION.fullmatch(text)
    return None if fraction is None else _fraction(fraction)


def _spelled(text: str) -> str:
    """The text with "3 1/2" for "3½"."""
    return text if text.isascii() else _VULGAR.sub(_spell, text)


def _spell(match: re.Match) -> str:
    value = Fraction(unicodedata.numeric(match[1] or match[2])).limit_denominator(100)
    return f"{' ' if match[1] else ''}{value.numerator}/{value.denominator}"


def _decimal(match: re.Match) -> Number | None:
    whole, part = (match["whole"] or "").replace(",", ""), match["part"]
    exponent = int(match["exponent"] or match["power"] or match["braced"] or 0)
    if len(whole) + len(part or "") > MAX_DIGITS or abs(exponent) > MAX_DIGITS:
        return None
    value = Fraction(int(whole + (part or ""))) * Fraction(10) ** (exponent - len(part or ""))
    plain = match.end() == match.end("whole")
    return Number(-value if (match["sign"] or "").startswith("-") else value, "whole" if plain else "decimal")


def _fraction(match: re.Match) -> Number | None:
    top = int(match["top"] or match["ltop"] or match["digit"])
    bottom = int(match["bottom"] or match["lbottom"] or match["under"])
    if bottom == 0 or (match["inner"] and match["whole"]):
        return None
    if match["whole"] and top >= bottom:  # "1 5/3" is a slip, or two numbers.
        return None
    value = int(match["whole"] or 0) + Fraction(top, bottom)
    negative = (match["sign"] or "").startswith("-") != bool(match["inner"])
    return Number(-value if negative else value, "fraction")


def rounded(value: Fraction, precision: int | None) -> Fraction:
    """The value to `precision` decimals, halves away from zero, as taught in schools; None leaves it."""
    if precision is None:
        return value
    scale = 10**precision
    magnitude = (2 * abs(value) * scale + 1) // 2
    return Fraction(-magnitude if value < 0 else magnitude, scale)
