"""Where the rows of a problem set are: a file by its ending, a folder of files, a Hugging Face data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mstar_engine.data.hub_rows import hub_rows, is_saved
from mstar_engine.data.json_rows import Rows, json_rows, jsonl_rows
from mstar_engine.data.parquet_rows import parquet_rows
from mstar_engine.data.tsv_rows import tsv_rows

READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": json_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".parquet": parquet_rows,
    ".tsv": tsv_rows,
    ".csv": tsv_rows,
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def row_files(path: str, split: str = "") -> Iterator[tuple[str, Rows]]:
    """(file, its rows) of each file below `path`; a folder's files of one kind in the order of their names.

    `split` chooses among a Hugging Face data set's splits, and among a folder's files those whose names begin with it;
    the name of a file by itself must.
    ValueError when there is nothing to read.
    """
    place = Path(path).expanduser()
    if place.is_file() and not _is_of(place, split):
        raise ValueError(f"{path}#{split}: one file, of no such split; allowed: {path}, a folder, or a data set's name")
    if place.is_file():
        if place.suffix.lower() not in READERS:
            raise ValueError(f"{path}: ends in {place.suffix!r}; allowed: {', '.join(READERS)}")
        yield str(place), READERS[place.suffix.lower()](place)
    elif place.is_dir() and is_saved(place):
        yield str(place), hub_rows(place, split)
    elif place.is_dir():
        yield from _folder(place, split)
    elif _HUB_NAME.fullmatch(path) and not path.startswith("."):
        yield path, hub_rows(path, split)
    else:
        raise ValueError(f"{path}: no such file or folder, and no name on the Hugging Face hub (owner/name)")


def _folder(place: Path, split: str) -> Iterator[tuple[str, Rows]]:
    # Data sets on the hub keep their files in data/.
    found = [file for folder in (place, place / "data") for file in sorted(folder.glob("*")) if file.is_file()]
    found = [file for file in found if file.suffix.lower() in READERS and _is_of(file, split)]
    kinds = {file.suffix.lower() for file in found}
    if len(kinds) != 1:
        what = (
            f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else f"no file of rows {split!r}".rstrip()
        )
        raise ValueError(f"{place}: {what}; allowed: one or more files ending alike in one of {', '.join(READERS)}")
    for file in found:
        yield str(file), READERS[file.suffix.lower()](file)


def _is_of(file: Path, split: str) -> bool:
    """Whether a file's name begins with a split's, and that does not go on ("test" is not "testmini")."""
    return not split or re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name) is not None
