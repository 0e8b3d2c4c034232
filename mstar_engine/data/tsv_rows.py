"""Rows of tab- or comma-separated files with a header line, as MMBench's are published, with images in base64."""

from __future__ import annotations

import csv
from pathlib import Path

from mstar_engine.data.flaw import Flaw
from mstar_engine.data.json_rows import MAX_ROW_BYTES, Rows


def tsv_rows(path: Path) -> Rows:
    """The rows of a .tsv or .csv file, numbered from 1 behind the header; empty cells are None.

    ValueError without a header line.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 stay apart from text, so that only the rows that hold them are lost.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(reader, None)
        if not header or len(set(header)) < len(header):
            raise ValueError(f"{path}: no header line with distinct names")
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, Flaw("unreadable row", "", f"not a row of cells: {error}")
                continue
            if cells:
                yield number, _row(header, cells)


def _row(header: list[str], cells: list[str]) -> dict | Flaw:
    if len(cells) != len(header):
        return Flaw("unreadable row", "", f"{len(cells)} cells; allowed: {len(header)}, as in the header")
    if not "".join(cells).isascii():
        try:
            "".join(cells).encode("utf-8")
        except UnicodeEncodeError:
            return Flaw("unreadable row", "", "not UTF-8")
    return {name: cell or None for name, cell in zip(header, cells)}
