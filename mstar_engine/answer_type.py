"""What kind of answer a problem has: said by the data reader, kept with the problem, read by `reward/golds.py`.

A problem without one is judged by exact match (`reward/answers.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

AnswerKind = Literal["choice", "integer", "float", "text", "list", "latex"]
ItemKind = Literal["integer", "float", "text"]
KINDS: tuple[str, ...] = get_args(AnswerKind)
ITEMS: tuple[str, ...] = get_args(ItemKind)
EXTRACTION_RULES = ("section", "heading", "boxed", "letter", "whole")
"""Where an answer may stand; see `reward/extract.py`."""
STRICT_EXTRACTION = ("section", "heading", "boxed")
"""The rules by default: the response must say that this is its answer."""
VARIANTS = ("strict", "mathvista", "m3cot", "vlmevalkit")
"""Whose rules decide; see `reward/variants.py`."""
MAX_CHOICES = 26
MAX_PRECISION = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerType:
    """How an answer is read and compared. Fields that a kind has no use for are refused.

    `choices` (choice): their texts, the first is A; without them only letters are known. `choice_by` says what an
    answer that is both a letter and a choice's text means. `precision` (float): decimals to which both sides are
    rounded; None compares exactly. `units` (integer, float): what may stand beside the number, each as good as none;
    "°" and "%" are written in any of their usual ways. `percent` (float): "50%" is 0.5. `items`, `ordered` (list): the
    kind of its items, and whether their order counts. `ignore_case` (text, list of text). `extract` names the rules
    that find an answer, in their order; `variant` whose rules judge it, "strict" unless a published number is to be
    compared with.
    """

    kind: AnswerKind
    choices: tuple[str, ...] = ()
    choice_by: Literal["letter", "text"] = "letter"
    precision: int | None = None
    units: tuple[str, ...] = ()
    percent: bool = False
    items: ItemKind = "text"
    ordered: bool = True
    ignore_case: bool = True
    extract: tuple[str, ...] = STRICT_EXTRACTION
    variant: str = "strict"

    def __post_init__(self) -> None:
        """Refuse what cannot be read; lists become tuples, so that a type is hashable."""
        for name in ("choices", "units", "extract"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"AnswerType: {name}={getattr(self, name)!r}; allowed: several texts")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        numbers = self.kind == "float" or (self.kind == "list" and self.items == "float")
        texts = self.kind == "text" or (self.kind == "list" and self.items == "text")
        precise = self.precision is None or self.precision in range(MAX_PRECISION + 1)
        rules_known = set(self.extract) <= set(EXTRACTION_RULES) and len(set(self.extract)) == len(self.extract) > 0
        choiceless = self.variant == "strict" or (self.variant == "mathvista" and self.kind != "latex")
        for name, allowed, ok in (
            ("kind", ", ".join(KINDS), self.kind in KINDS),
            ("items", ", ".join(ITEMS), self.items in ITEMS),
            ("choice_by", "letter or text", self.choice_by in ("letter", "text")),
            ("choices", "none, with this kind", self.kind == "choice" or not self.choices),
            ("choices", f"at most {MAX_CHOICES}", len(self.choices) <= MAX_CHOICES),
            ("choices", "no empty text", all(isinstance(text, str) and text.strip() for text in self.choices)),
            ("precision", "none, with this kind", numbers or self.precision is None),
            ("precision", f"0 to {MAX_PRECISION}", precise),
            ("units", "none, with this kind", self.kind in ("integer", "float") or not self.units),
            ("units", "no empty text", all(isinstance(text, str) and text.strip() for text in self.units)),
            ("percent", "false, with this kind", self.kind == "float" or not self.percent),
            ("percent", "false, beside the unit %", not self.percent or "%" not in self.units),
            ("extract", f"one or more of {', '.join(EXTRACTION_RULES)}, each once", rules_known),
            ("variant", ", ".join(VARIANTS), self.variant in VARIANTS),
            ("variant", "strict or mathvista, with this kind", self.kind == "choice" or choiceless),
            ("variant", "strict, without choices", self.kind != "choice" or self.choices or self.variant == "strict"),
            ("ignore_case", "true, with this kind", texts or self.ignore_case),
        ):
            if not ok:
                raise ValueError(f"AnswerType: {name}={getattr(self, name)!r}; allowed: {allowed} (kind {self.kind})")


def write_answer_type(answer_type: AnswerType | None) -> str | None:
    """One line of JSON with what differs from the defaults; None for None."""
    if answer_type is None:
        return None
    defaults = {one.name: one.default for one in fields(answer_type)}
    said = {name: value for name, value in asdict(answer_type).items() if value != defaults[name]}
    return json.dumps(said, ensure_ascii=False)


def read_answer_type(line: str | None) -> AnswerType | None:
    """The type that `write_answer_type` wrote; ValueError for another text."""
    if line is None:
        return None
    try:
        return AnswerType(**json.loads(line))
    except TypeError as error:
        raise ValueError(f"answer_type {line!r}: {error}") from None
