"""Rows of JSON and JSON Lines files, one at a time: memory does not grow with the file.

A row that is damaged becomes a flaw, and reading goes on behind it: with the next line of JSON Lines, with the next
object of an array that looks like a row.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mstar_engine.data.flaw import Flaw

MAX_ROW_BYTES = 64 << 20
"""No row is longer; a file of one endless row must not fill the memory."""
_CHUNK = 1 << 20
_AHEAD = 4 << 20  # a row that more text than this does not complete is damaged, if whole rows stand behind it
_SPACE = re.compile(r"[ \t\r\n]*")
_TRIES = 2_000  # objects looked at behind a damaged row: text made to cost time must not cost more
_DEEP = 20  # and of those nested without end, which take longest
_SHAPES = 1000  # sets of keys that are counted
_DECODER = json.JSONDecoder()
_DAMAGE = (ValueError, RecursionError)  # bad JSON, numbers of absurd length; objects nested without end

Rows = Iterator[tuple[int, "dict[str, Any] | Flaw"]]
"""(number of the row from 1, its values or what is wrong with it)."""


def jsonl_rows(path: Path) -> Rows:
    """The rows of a JSON Lines file, numbered by line; blank lines are no rows."""
    with open(path, "rb") as file:
        _refuse_utf16(file, path)
        number = 0
        while line := file.readline(MAX_ROW_BYTES):
            number += 1
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    pass
                yield number, Flaw("unreadable row", "", f"longer than {MAX_ROW_BYTES} bytes")
            elif line.strip():
                yield number, _line(line)


def _line(line: bytes) -> dict[str, Any] | Flaw:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Flaw("unreadable row", "", f"not UTF-8 at byte {error.start}: {error.reason}")
    except _DAMAGE as error:
        return Flaw("unreadable row", "", f"not JSON: {error}")
    return value if isinstance(value, dict) else Flaw("unreadable row", "", "not an object")


def json_rows(path: Path) -> Rows:
    """The rows of a JSON file: an array of objects, read as a stream, or a (small) object whose values are the rows.

    ValueError when the file is neither.
    """
    with open(path, "rb") as file:
        _refuse_utf16(file, path)
        splitter = _Splitter(file)
        opening = splitter.skip_space()
        if opening == "[":
            yield from splitter.rows()
        elif opening == "{":
            yield from enumerate(_named_rows(path), 1)
        else:
            raise ValueError(f"{path}: no rows; allowed: a JSON array of objects, or a .jsonl file with one a line")


def _named_rows(path: Path) -> list[dict[str, Any] | Flaw]:
    """The values of the one object that a file holds."""
    if path.stat().st_size > MAX_ROW_BYTES:
        raise ValueError(f"{path}: one object of more than {MAX_ROW_BYTES} bytes; allowed: an array of rows")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except _DAMAGE as error:
        raise ValueError(f"{path}: not JSON, and no array whose other rows could be read: {error}") from None
    is_row = [isinstance(row, dict) for row in value.values()]
    return [row if good else Flaw("unreadable row", "", "not an object") for row, good in zip(value.values(), is_row)]


def _refuse_utf16(file: BinaryIO, path: Path) -> None:
    """Leave the file behind a UTF-8 byte order mark, if it has one."""
    head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: is UTF-16; allowed: UTF-8")
    file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)


class _Splitter:
    """Cuts a JSON array into its members without holding more than one of them and what was read with it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Bytes that are not UTF-8 stay apart from text, so that only the rows that hold them are lost.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._ended = "", 0, False
        self._shapes: Counter[frozenset[str]] = Counter()  # characters of the rows of each set of keys
        self._length = 0

    def rows(self) -> Rows:
        """The members of the array whose bracket is at the cursor."""
        self._at += 1
        number, after = 0, self.skip_space()
        if after == "]":
            self._at += 1
            if self.skip_space():
                yield 1, Flaw("unreadable row", "", "more text behind the end of the rows")
            return
        while True:
            number += 1
            row, whole = self._row()
            if whole:
                after = self.skip_space()
                if after == ",":
                    self._at += 1
                    if isinstance(row, dict) and len(self._shapes) < _SHAPES:
                        self._shapes[frozenset(row)] += self._length
                    yield number, row
                    self.skip_space()
                    continue
                if after == "]" and self._nothing_follows():
                    yield number, row
                    return
                # A row that was cut inside may still end well, with the middle of another behind it.
                ending = repr(after) if after else "the end of the file"
                row = Flaw("unreadable row", "", f"behind it comes {ending}, not a comma or the end of the rows")
                if after == "{":
                    yield number, row
                    continue
            yield number, row
            if not self._resume():
                return

    def _row(self) -> tuple[dict[str, Any] | Flaw, bool]:
        """The row at the cursor, and whether it is a whole JSON value; if so the cursor is then behind it."""
        try:
            value, end = self._value()
        except _DAMAGE as error:
            early = self._ended and self._next_row() is None
            return Flaw("unreadable row", "", f"{'the file ends early' if early else 'not JSON'}: {error}"), False
        begin, self._at = self._at, end
        self._length = end - begin
        if not isinstance(value, dict):
            return Flaw("unreadable row", "", "not an object"), True
        try:
            self._text[begin:end].encode("utf-8")
        except UnicodeEncodeError:
            return Flaw("unreadable row", "", "not UTF-8"), True
        return value, True

    def _value(self) -> tuple[Any, int]:
        """Decode at the cursor, reading on while the text may only be short. One of _DAMAGE when it is damaged."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # a number may go on
                    return value, end
            except _DAMAGE:
                left = len(self._text) - self._at
                damaged = left > _AHEAD and self._shapes and self._next_row() is not None
                if self._ended or damaged or left > MAX_ROW_BYTES:
                    raise
            # Twice as much each time, so that a long row is decoded a few times only.
            self._read(max(_CHUNK, len(self._text) - self._at))

    def _next_row(self) -> int | None:
        """The next place behind the cursor where an object with the keys of a row begins."""
        keys = self._row_keys()
        for at, row, _ in self._objects():
            if len(keys & row.keys()) * 2 >= len(keys):
                return at
        return None

    def _row_keys(self) -> frozenset[str]:
        """The keys of rows: of those objects, read or still behind the cursor, that make up most of the text."""
        shapes, end = self._shapes.copy(), 0
        for at, row, length in self._objects():
            if at >= end:  # what is inside of a row is none
                shapes[frozenset(row)] += length
                end = at + length
        return shapes.most_common(1)[0][0] if shapes else frozenset()

    def _objects(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """(place, object, length) of what can be read as an object behind the cursor, whatever it is part of."""
        at, deep = self._at, 0
        for _ in range(_TRIES):
            at = self._text.find("{", at + 1)
            if at < 0 or deep > _DEEP:
                return
            try:
                value, end = _DECODER.raw_decode(self._text, at)
            except ValueError:
                continue
            except RecursionError:
                deep += 1
                continue
            if value:  # "{}" is no row, and TeX is full of it
                yield at, value, end - at

    def _resume(self) -> bool:
        """Put the cursor at the next row behind a damaged one; False when there is none."""
        while (found := self._next_row()) is None:
            if self._ended:
                return False
            if len(self._text) - self._at > MAX_ROW_BYTES:
                self._at = len(self._text) - _CHUNK  # nothing like a row in all this
            self._read(_AHEAD)
        self._at = found
        return True

    def skip_space(self) -> str:
        """Move the cursor to the next character that is not white space and return it; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read(_CHUNK)

    def _nothing_follows(self) -> bool:
        """Whether the bracket at the cursor is the last thing in the file."""
        while not self._text[self._at + 1 :].strip() and not self._ended:
            self._read(_CHUNK)
        return not self._text[self._at + 1 :].strip()

    def _read(self, size: int) -> None:
        """Drop what lies before the cursor and append about `size` bytes."""
        data = self._file.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._decode(data, final=self._ended)
        self._at = 0
