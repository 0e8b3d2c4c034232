"""Rows of a data set to problems: each row becomes one, or is set aside with the reason, and every row is counted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstar_engine.answer_type import AnswerType
from mstar_engine.data.flaw import Flaw, shown
from mstar_engine.data.formats import FORMATS
from mstar_engine.data.gold import is_absent, plain_text, read_gold
from mstar_engine.data.image_files import ImageFiles
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
        known = FORMATS[self.form].categories
        if known and (unknown := set(self.categories) - set(known)):
            raise ValueError(f"categories: {', '.join(sorted(unknown))}; allowed: {', '.join(known)}")


def read_problems(source: Source, images: ImageFiles, quarantine: Quarantine) -> Iterator[Problem]:
    """The problems of a source, in the order of its rows; ids begin with the name of the source.

    Of rows with one id and one content the first is kept and the others are only counted; with another content the
    later ones are set aside. ValueError when there is nothing to read.
    """
    form = FORMATS[source.form]
    columns = {**form.columns, **source.fields}
    place = Path(source.path).expanduser()
    name = place.stem if place.exists() else source.path
    builder = _Builder(source, form, columns, images)
    seen: dict[str, bytes] = {}
    counted = read = 0
    for file, rows in row_files(source.path, source.split):
        for number, row in rows:
            quarantine.rows += 1
            counted += 1
            try:
                if isinstance(row, Flaw):
                    raise row
                problem = builder.problem(row, name, counted)
                if problem is None:
                    quarantine.left_out += 1
                    continue
                content = _content(problem)
                if (before := seen.setdefault(problem.id, content)) is not content:
                    if before != content:
                        raise Flaw("conflicting id", columns["id"], "an earlier row of this id has another content")
                    quarantine.repeated += 1
                    continue
            except Flaw as flaw:
                quarantine.add(file, number, builder.shown_id(row), flaw)
                continue
            yield problem
            read += 1
            if source.limit and read >= source.limit:
                return


def _content(problem: Problem) -> bytes:
    """A digest of all that a problem says beside its id."""
    said = (problem.question, problem.images, problem.gold, problem.answer_type, problem.source, problem.response)
    return hashlib.blake2b(repr(said).encode(), digest_size=16).digest()


class _Builder:
    """Makes the problems of one source."""

    def __init__(self, source: Source, form: Format, columns: Mapping[str, str], images: ImageFiles) -> None:
        self._source, self._form, self._columns, self._images = source, form, columns, images
        self._kept = frozenset(source.categories or form.kept)
        self._with_ids: bool | None = None
        self._types: dict[AnswerType, AnswerType] = {}
        self._files: dict[str, Path] = {}

    def problem(self, row: dict[str, Any], name: str, place: int) -> Problem | None:
        """The problem of a row; None when its category is not asked for. Flaw."""
        record = record_of(row, self._columns, self._form)
        category = self._category(record)
        if self._kept and category not in self._kept:
            return None
        id = self._id(record, place)
        question = _required_text(record.question, "bad question", record.names["question"])
        images = self._image_paths(record, id)
        gold, answer_type = self._gold(record)
        return Problem(
            id=f"{name}/{id}",
            question=_without_placeholders(question, len(images), record),
            images=images,
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

    def _image_paths(self, record: Record, id: str) -> tuple[Path, ...]:
        column, images = record.names["images"], record.images
        if is_absent(images):
            images = []
        elif not isinstance(images, (list, tuple)):
            images = [images]
        if record.base64:
            return tuple(self._base64(image, id, column) for image in images)
        return tuple(self._images.find(image, column) for image in images)

    def _base64(self, image: Any, id: str, column: str) -> Path:
        """An image as base64, or as the id of an earlier row with the same image (as MMBench's files save room)."""
        if isinstance(image, str) and len(image) <= 16 and image.isdecimal():
            if image not in self._files:
                raise Flaw("missing image", column, f"row {image}, which has the image, is not before this one")
            return self._files[image]
        self._files[id] = found = self._images.find_base64(image, column)
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
