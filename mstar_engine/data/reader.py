"""Rows of a data set to problems: each row becomes one, or is set aside with the reason, and every row is counted."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mstar_engine.answer_type import AnswerType
from mstar_engine.data.flaw import Flaw, shown
from mstar_engine.data.formats import FORMATS
from mstar_engine.data.gold import is_absent, plain_text, read_gold
from mstar_engine.data.image_files import Asked, ImageFiles, refused
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.record import FIELDS, Format, Record, pick, record_of
from mstar_engine.data.row_files import row_files
from mstar_engine.types import Problem

_IMAGE = "<image>"
# What families' processors put images in place of: in a question it would claim an image that is not there.
IMAGE_TOKENS = re.compile(
    r"<\|(?:image(?:_pad|_\d+)?|vision_start|vision_end|video_pad|endofimage)\|>"
    r"|<image_soft_token>|<start_of_image>|<IMG_CONTEXT>|<im_patch>|<fake_token_around_image>|\[IMG\]|<image_\d+>"
)
UnusableGolds = Callable[[Sequence[Problem]], Sequence[str | None]]
"""What is wrong with the reference answer of each problem, None where nothing is: who judges by them knows."""
_ROWS_AT_ONCE = 2048
_ROWS_AHEAD = 4  # a thread, so that none waits for the reading
_BYTES_AHEAD = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a problem set's rows are and how they are read.

    `fields` lays a run's own column names over those of `form`, a name of FORMATS ("" leaves a field out).
    `categories` are those to keep, by the data set's names. `golds`: a row without one is set aside. `responses`: the
    answers are demonstrations too. `limit` ends the reading after so many problems (0: never).
    """

    path: str
    form: str = "rows"
    fields: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    categories: tuple[str, ...] = ()
    golds: bool = True
    responses: bool = False
    limit: int = 0

    def __post_init__(self) -> None:
        """Refuse names that are not there."""
        if self.form not in FORMATS:
            raise ValueError(f"format {self.form!r}; allowed: {', '.join(FORMATS)}")
        if unknown := set(self.fields) - set(FIELDS):
            raise ValueError(f"fields: {', '.join(sorted(unknown))}; allowed: {', '.join(FIELDS)}")
        form = FORMATS[self.form]
        own = {said: name for name, said in form.category_names.items()}
        object.__setattr__(self, "categories", tuple(own.get(name, name) for name in self.categories))
        if form.categories and (unknown := set(self.categories) - set(form.categories)):
            allowed = [form.category_names.get(name, name) for name in form.categories]
            raise ValueError(f"categories: {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")


def read_problems(
    source: Source, images: ImageFiles, quarantine: Quarantine, unusable: UnusableGolds | None = None
) -> Iterator[Problem]:
    """The problems of a source, in the order of its rows; ids begin with the name of the source.

    Of rows with one id and one content the first is kept and the others are only counted; with another content the
    later ones are set aside, as are those that ask what an earlier one asks and have another reference answer, and
    those whose reference answer is `unusable`. ValueError when there is nothing to read.
    """
    seen: dict[str, bytes] = {}
    golds: dict[bytes, bytes] = {}
    read = 0
    rows = _with_images(_rows(source, images, quarantine), images)
    for row in rows if unusable is None else _with_usable_golds(rows, unusable):
        problem, flaw = row.problem, row.flaw
        if problem is not None:
            content = _content(problem)
            if (before := seen.setdefault(problem.id, content)) is not content:
                if before == content:
                    quarantine.repeated += 1
                    continue
                flaw = Flaw("conflicting id", row.names["id"], "an earlier row of this id has another content")
            elif problem.gold is not None and not source.responses:
                gold = _digest(" ".join(problem.gold.split()).casefold())
                if golds.setdefault(_asked_of(problem), gold) != gold:
                    said = f"{shown(problem.gold)}; an earlier row asks the same and has another answer"
                    flaw = Flaw("conflicting gold", row.names["gold"], said)
        if flaw is not None:
            quarantine.add(row.file, row.number, row.id, flaw)
            continue
        yield problem
        read += 1
        if source.limit and read >= source.limit:
            return


@dataclass(slots=True)
class _Row:
    """A row as it was read: its problem, or its flaw; `names` is what it calls its fields, `images` have been asked for
    (a flaw of theirs comes before the others')."""

    file: str
    number: int
    id: str | None
    names: Mapping[str, str]
    problem: Problem | None = None
    flaw: Flaw | None = None
    images: tuple[Asked, ...] = ()


def _rows(source: Source, images: ImageFiles, quarantine: Quarantine) -> Iterator[_Row]:
    """The rows that are asked for. ValueError when asked for are categories that no row has."""
    form = FORMATS[source.form]
    columns = {**form.columns, **source.fields}
    place = Path(source.path).expanduser()
    name = place.stem if place.exists() else source.path
    builder = _Builder(source, form, columns, images)
    counted = 0
    for file, rows in row_files(source.path, source.split):
        for number, row in rows:
            quarantine.rows += 1
            counted += 1
            problem = flaw = None
            builder.names, builder.images = columns, ()
            try:
                if isinstance(row, Flaw):
                    raise row
                problem = builder.problem(row, name, counted)
            except Flaw as found:
                flaw = found
            if problem is None and flaw is None:
                quarantine.left_out += 1
            else:
                yield _Row(file, number, builder.shown_id(row), builder.names, problem, flaw, builder.images)
    if missing := [one for one in source.categories if one not in builder.met]:
        there = ", ".join(sorted(builder.met - {""})[:20]) or "none"
        raise ValueError(f"categories: {', '.join(missing)}: in none of {quarantine.rows} rows; there are: {there}")


def _with_images(rows: Iterator[_Row], images: ImageFiles) -> Iterator[_Row]:
    """The rows in their order with their images, which are looked at while later rows are read."""
    asked: deque[_Row] = deque()
    try:
        for row in rows:
            asked.append(row)
            while asked and (len(asked) >= _ROWS_AHEAD * images.threads or images.waiting > _BYTES_AHEAD):
                yield _answered(asked.popleft())
        while asked:
            yield _answered(asked.popleft())
    finally:
        images.close()


def _answered(row: _Row) -> _Row:
    try:
        found = tuple(image() for image in row.images)
        if found and row.problem is not None:
            row.problem = replace(row.problem, images=found)
    except Flaw as flaw:
        row.problem, row.flaw = None, flaw
    return row


def _with_usable_golds(rows: Iterator[_Row], unusable: UnusableGolds) -> Iterator[_Row]:
    """The rows in their order, with a flaw where a reference answer is unusable."""
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        read = [row for row in some if row.problem is not None]
        for row, said in zip(read, unusable([row.problem for row in read]), strict=True):
            if said is not None:
                row.problem, row.flaw = None, Flaw("bad gold", row.names["gold"], said)
        yield from some


def _content(problem: Problem) -> bytes:
    """A digest of all that a problem says beside its id."""
    said = (problem.question, problem.images, problem.gold, problem.answer_type, problem.source, problem.response)
    return _digest(said)


def _asked_of(problem: Problem) -> bytes:
    """A digest of what a problem asks: those that ask the same about the same images have one answer."""
    choices = problem.answer_type.choices if problem.answer_type is not None else ()
    return _digest((problem.question, problem.images, choices))


def _digest(said: object) -> bytes:
    return hashlib.blake2b(repr(said).encode(), digest_size=16).digest()


class _Builder:
    """Makes the problems of one source."""

    def __init__(self, source: Source, form: Format, columns: Mapping[str, str], images: ImageFiles) -> None:
        self._source, self._form, self._columns, self._images = source, form, columns, images
        self._kept = frozenset(source.categories or form.kept)
        self._with_ids: bool | None = None
        self._types: dict[AnswerType, AnswerType] = {}
        self._files: dict[str, Asked] = {}
        self.met: set[str] = set()
        # Of the row that is being read.
        self.names: Mapping[str, str] = columns
        self.images: tuple[Asked, ...] = ()

    def problem(self, row: dict[str, Any], name: str, place: int) -> Problem | None:
        """The problem of a row, without its images; None when its category is not asked for. Flaw."""
        record = record_of(row, self._columns, self._form)
        self.names = record.names
        category = self._category(record)
        self.met.add(category)
        if self._kept and category not in self._kept:
            return None
        id = self._id(record, place)
        question = _required_text(record.question, "bad question", record.names["question"])
        self.images = self._asked(record, id)
        gold, answer_type = self._gold(record)
        return Problem(
            id=f"{name}/{id}",
            question=_without_placeholders(question, len(self.images), record),
            gold=gold,
            source=self._form.category_names.get(category, category) or name,
            response=self._response(record),
            answer_type=answer_type,
        )

    def shown_id(self, row: dict[str, Any] | Flaw) -> str | None:
        """The id of a row that is set aside, as far as there is one."""
        value = None if isinstance(row, Flaw) else pick(row, self._columns["id"])[1]
        return None if value is None else str(value)[:200]

    def _id(self, record: Record, place: int) -> str:
        """The row's own id; its place where the data set has no ids, which its first row decides."""
        column, value = record.names["id"], record.id
        if self._with_ids is None:
            self._with_ids = bool(self._columns.get("id")) and value is not None
        if not self._with_ids and value is None:
            return str(place)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise Flaw("bad id", column, f"{shown(value)} is no id")
        return _required_text(str(value), "bad id", column).strip()

    def _category(self, record: Record) -> str:
        column, value = record.names["category"], record.category
        if is_absent(value) and not self._form.categories and not self._source.categories:
            return ""
        if not isinstance(value, str) or (self._form.categories and value not in self._form.categories):
            allowed = f"; allowed: {', '.join(self._form.categories)}" if self._form.categories else ""
            raise Flaw("unknown category", column, f"{shown(value)}{allowed}")
        return plain_text(value, "unknown category", column)

    def _asked(self, record: Record, id: str) -> tuple[Asked, ...]:
        column, images = record.names["images"], record.images
        if is_absent(images):
            images = []
        elif not isinstance(images, (list, tuple)):
            images = [images]
        if record.base64:
            return tuple(self._base64(image, id, column) for image in images)
        return tuple(self._images.ask(image, column) for image in images)

    def _base64(self, image: Any, id: str, column: str) -> Asked:
        """An image as base64, or as the id of an earlier row with the same image (as MMBench's files save room)."""
        if isinstance(image, str) and len(image) <= 16 and image.isdecimal():
            missing = Flaw("missing image", column, f"row {image}, which has the image, is not before this one")
            earlier = self._files.get(image)
            return refused(missing) if earlier is None else lambda: _of_earlier(earlier, missing)
        self._files[id] = found = self._images.ask_base64(image, column)
        return found

    def _gold(self, record: Record) -> tuple[str | None, AnswerType | None]:
        if is_absent(record.gold) and not self._source.golds:
            return None, None
        gold, answer_type = read_gold(
            record.gold,
            kind=record.answer_type,
            choices=record.choices,
            precision=record.precision,
            unit=record.unit,
            fields=record.names,
        )
        return gold, None if answer_type is None else self._types.setdefault(answer_type, answer_type)

    def _response(self, record: Record) -> str | None:
        if not self._source.responses:
            return None
        return _required_text(record.response, "bad gold", record.names["response"])


def _of_earlier(image: Asked, missing: Flaw) -> Path:
    try:
        return image()
    except Flaw:
        raise missing from None


def _required_text(value: Any, reason: Any, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Flaw(reason, column, "nothing" if is_absent(value) else f"{shown(value)} is no text")
    return plain_text(value, reason, column)


def _without_placeholders(question: str, images: int, record: Record) -> str:
    """The question's words: the chat template places the images, in front. Flaw when there are more or fewer places
    than images.

    Of several images, one that the text names in passing keeps its number there.
    """
    column, places = record.names["question"], question.count(_IMAGE)
    if (foreign := IMAGE_TOKENS.search(question)) is not None:
        raise Flaw("placeholders", column, f"{foreign[0]!r}; allowed: {_IMAGE}, one for each image")
    if places != images and (places or record.placed):
        raise Flaw("placeholders", column, f"{places} of {_IMAGE} for {images} images")
    if not places:
        return question
    body, before = question.strip(), 0
    while body.startswith(_IMAGE):
        body, before = body.removeprefix(_IMAGE).lstrip(), before + 1
    while body.endswith(_IMAGE):
        body = body.removesuffix(_IMAGE).rstrip()
    for number in range(before + 1, before + body.count(_IMAGE) + 1):
        body = body.replace(_IMAGE, f"image {number}" if images > 1 else "the image", 1)
    if not body:
        raise Flaw("bad question", column, "nothing but images")
    return body
