"""The event stream of a run: what it did, in order, so that it can be watched and continued.

An event is one line of JSON with `time` (Unix seconds) and `event`. It is on the disk when `append` returns. A line
torn by a crash is dropped on reading and cut off on reopening; a broken line elsewhere is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mstar_engine.durable import AppendFile


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a journal file, oldest first; empty when there is no file. ValueError names a broken line."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events and the bytes that hold them; a torn last line is left out of both."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    lines = data.split(b"\n")
    events, length = [], 0
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError
        except ValueError:
            if number == len(lines) - 1 and not lines[-1]:
                break
            raise ValueError(f"{path}: line {number} is no event") from None
        events.append(event)
        length += len(line) + 1
    return events, length


class Journal:
    """The append-only event stream of one run; `events` holds all of them, those of earlier sittings included."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path`."""
        self.events, length = _read(path)
        self._file = AppendFile(path, length)

    def append(self, event: str, **fields: Any) -> None:
        """Record `event` with its fields (what JSON can hold, NaN excepted: ValueError)."""
        record = {"time": round(time.time(), 3), "event": event, **fields}
        line = json.dumps(record, allow_nan=False, separators=(",", ":"), default=plain)
        self._file.append(line.encode() + b"\n")
        self.events.append(json.loads(line))

    def last(self, event: str, **fields: Any) -> dict[str, Any] | None:
        """The newest event of this name whose fields have these values."""
        for record in reversed(self.events):
            if record["event"] == event and all(record.get(key) == value for key, value in fields.items()):
                return record
        return None

    def done(self, stage: str) -> bool:
        """Whether `stage` has finished, in this sitting or an earlier one."""
        return self.last("stage", stage=stage, state="done") is not None

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[dict[str, Any]]:
        """Mark the start of a stage, and its end with `seconds` and whatever the caller puts into the yielded dict.

        A stage that raises is marked "stopped" with the reason, if the disk allows, and the error passes through.
        """
        self.append("stage", stage=stage, state="start")
        begin, fields = time.monotonic(), {}
        try:
            yield fields
        except BaseException as error:
            seconds = round(time.monotonic() - begin, 3)
            with contextlib.suppress(OSError):
                self.append("stage", stage=stage, state="stopped", seconds=seconds, reason=type(error).__name__)
            raise
        self.append("stage", stage=stage, state="done", seconds=round(time.monotonic() - begin, 3), **fields)

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage over all sittings, in order of first appearance."""
        spent: dict[str, float] = {}
        for record in self.events:
            if record["event"] == "stage":
                spent[record["stage"]] = round(spent.get(record["stage"], 0.0) + record.get("seconds", 0.0), 3)
        return spent

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def plain(value: Any) -> Any:
    """What JSON lacks, in its terms: records, numpy scalars, paths; the `default` of json.dumps."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")
