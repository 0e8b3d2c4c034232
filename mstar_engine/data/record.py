"""A row in the engine's terms, before it is checked: what each data set's columns mean, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("id", "question", "images", "gold", "choices", "answer_type", "precision", "unit", "category", "response")
"""What a row can say about a problem; a field map names the row's columns for them."""


@dataclass(slots=True, kw_only=True)
class Record:
    """The values of a row by what they mean, as they were found. `names` says what the row calls them.

    `placed`: the question must hold one `<image>` for each image. `base64`: text in `images` is base64, no path.
    `category` is kept as the problem's source.
    """

    names: dict[str, str]
    id: Any = None
    question: Any = None
    images: Any = None
    gold: Any = None
    choices: Any = None
    answer_type: Any = None
    precision: Any = None
    unit: Any = None
    category: Any = None
    response: Any = None
    placed: bool = False
    base64: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a data set's rows are read.

    `columns`: our fields to its columns ("a.b" looks inside, "a|b" takes the first there is). `interpret`: what else
    its rows need, on the record that the columns gave. `categories`: all that it has, by its own names; empty: any.
    `kept`: those read unless a run says otherwise; empty: all. `category_names`: what problems call them; tables have
    them in the order of `categories`. `published`: the variant of answer_type.VARIANTS by which published numbers on
    the data set were made; empty: none of ours.
    """

    about: str
    columns: Mapping[str, str]
    interpret: Callable[[dict[str, Any], Record], Record] | None = None
    categories: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    category_names: Mapping[str, str] = field(default_factory=dict)
    published: str = ""

    @property
    def order(self) -> tuple[str, ...]:
        """The categories by the names that problems have for them, in the order of tables."""
        return tuple(self.category_names.get(name, name) for name in self.categories)


def pick(row: Mapping[str, Any], columns: str) -> tuple[str, Any]:
    """(column, value) of the first of "a|b.c" that a row has; the first column and None when it has none."""
    first = columns.split("|")[0]
    for column in columns.split("|"):
        value: Any = row
        for part in column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            if value is not None:
                return column, value
    return first, None


def record_of(row: dict[str, Any], columns: Mapping[str, str], form: Format) -> Record:
    """The record of a row; a Flaw from what the format needs."""
    names, values = {name: name for name in FIELDS}, {}
    for name, places in columns.items():
        if places:
            names[name], values[name] = pick(row, places)
    record = Record(names=names, **values)
    return form.interpret(row, record) if form.interpret else record
