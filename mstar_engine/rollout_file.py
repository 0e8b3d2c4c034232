"""Rollouts on disk: one row a response, durable group by group while sampling, Parquet when the phase is over.

While a phase runs, `<name>.partial` grows by one frame a finished group: length, CRC-32, then the group's rows as an
Arrow stream. A torn or damaged tail ends the readable part, so a crash at any byte costs at most the group being
written. `finish` turns the frames into Parquet, sorted by problem: the file does not depend on the order of finishing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mstar_engine.durable import AppendFile, replace_file, sync_folder
from mstar_engine.types import Group, Problem, Response

_FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("prompt_length", pa.int32()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", _FLOATS),
        ("scaled_logprobs", _FLOATS),
        ("filtered_logprobs", _FLOATS),
        ("entropy", _FLOATS),
        ("finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("step_scores", pa.list_(pa.float64())),
        ("score", pa.float64()),
        ("selected", pa.bool_()),
    ]
)
_ARRAYS = ("logprobs", "scaled_logprobs", "filtered_logprobs", "entropy")
_SCALARS = ("sample", "text", "finish_reason", "temperature", "answer", "correct", "score", "selected")
_HEADER = struct.Struct("<II")
_ROWS_PER_WRITE = 4096


def group_table(group: Group, iteration: int) -> pa.Table:
    """A group as rows of `SCHEMA`, one a response."""
    problem, responses = group.problem, group.responses
    if not responses:
        raise ValueError(f"problem {problem.id}: a group without responses cannot be kept")
    rows = len(responses)
    columns: dict[str, list] = {
        "iteration": [iteration] * rows,
        "problem_id": [problem.id] * rows,
        "source": [problem.source] * rows,
        "question": [problem.question] * rows,
        "gold": [problem.gold] * rows,
        "prompt_length": [group.prompt_length] * rows,
        "token_ids": [np.asarray(r.token_ids, np.int32) for r in responses],
        "step_scores": [r.step_scores for r in responses],
    }
    columns |= {name: [getattr(r, name) for r in responses] for name in _SCALARS}
    columns |= {name: [np.asarray(getattr(r, name), np.float32) for r in responses] for name in _ARRAYS}
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def table_groups(table: pa.Table, problems: Mapping[str, Problem] | None = None) -> list[Group]:
    """Groups from rows of `SCHEMA`, in order of first appearance.

    The problems come from `problems` by id where given (images and all), else they are rebuilt without images.
    """
    groups: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        groups.setdefault(row["problem_id"], []).append(row)
    return [_group(rows, problems) for rows in groups.values()]


def _group(rows: list[dict], problems: Mapping[str, Problem] | None) -> Group:
    first = rows[0]
    problem = None if problems is None else problems.get(first["problem_id"])
    if problem is None:
        problem = Problem(
            id=first["problem_id"], question=first["question"], gold=first["gold"], source=first["source"]
        )
    responses = tuple(
        Response(
            token_ids=np.array(row["token_ids"], np.int32),
            step_scores=None if row["step_scores"] is None else tuple(row["step_scores"]),
            **{name: row[name] for name in _SCALARS},
            **{name: np.array(row[name], np.float32) for name in _ARRAYS},
        )
        for row in sorted(rows, key=lambda row: row["sample"])
    )
    return Group(problem=problem, responses=responses, prompt_length=first["prompt_length"])


def read_rollouts(path: Path, problems: Mapping[str, Problem] | None = None) -> list[Group]:
    """The groups of a finished phase, sorted by problem id, of an unfinished one those so far, as they finished.

    `path` is the Parquet file's either way.
    """
    if path.exists():
        return table_groups(pq.read_table(path), problems)
    return [group for _, table in _frames(partial_path(path)) for group in table_groups(table, problems)]


def partial_path(path: Path) -> Path:
    """Where the rollouts of `path` are kept until their phase is over."""
    return path.with_suffix(".partial")


def _frame(table: pa.Table) -> bytes:
    """The rows of a group as they stand in a partial file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_table(table)
    data = sink.getvalue().to_pybytes()
    return _HEADER.pack(len(data), zlib.crc32(data)) + data


def _frames(path: Path) -> Iterator[tuple[int, pa.Table]]:
    """(offset of its end, rows) of each whole frame of a partial file; none when there is no file."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, crc = _HEADER.unpack(header)
            data = file.read(length)
            # A header of zeros (blocks that a power cut left unwritten) has the right CRC of nothing.
            if not length or len(data) != length or zlib.crc32(data) != crc:
                return
            yield file.tell(), pa.ipc.open_stream(data).read_all()


class RolloutWriter:
    """Keeps the groups of one phase. A group is on the disk when `write` returns, and is not sampled again on resume.

    `finished`: the ids of the problems kept so far. `complete`: the phase is over, now or in an earlier sitting.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        """Open the phase whose Parquet file will be `path`; what a crash tore is cut off."""
        self.path, self.iteration = path, iteration
        self.complete = path.exists()
        self.finished: set[str] = set()
        self._file: AppendFile | None = None
        if self.complete:
            self.finished = set(pq.read_table(path, columns=["problem_id"])["problem_id"].to_pylist())
            partial_path(path).unlink(missing_ok=True)
            return
        length = 0
        for end, table in _frames(partial_path(path)):
            length = end
            self.finished.add(table["problem_id"][0].as_py())
        self._file = AppendFile(partial_path(path), length)

    def write(self, *groups: Group) -> None:
        """Keep finished groups; those that finished together share one wait for the disk, which is most of the cost.

        ValueError when a problem is kept already; OSError leaves the file as it was.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: the phase is over; more groups come too late")
        data, names = b"", set()
        for group in groups:
            if group.problem.id in self.finished or group.problem.id in names:
                raise ValueError(f"{self.path}: problem {group.problem.id} is kept already")
            names.add(group.problem.id)
            data += _frame(group_table(group, self.iteration))
        self._file.append(data)
        self.finished |= names

    def groups(self, problems: Mapping[str, Problem] | None = None) -> list[Group]:
        """Every group kept so far, sorted by problem id; see `table_groups` for `problems`."""
        return sorted(read_rollouts(self.path, problems), key=lambda group: group.problem.id)

    def finish(self) -> Path:
        """Turn the phase into its Parquet file, in one step, and drop the partial one; a second call does nothing."""
        if not self.complete:
            replace_file(self.path, self._write_parquet)
            self.complete = True
            self.close()
            partial_path(self.path).unlink(missing_ok=True)
            sync_folder(self.path.parent)
        return self.path

    def _write_parquet(self, temporary: Path) -> None:
        # Two passes, so that memory holds the ids and one write's rows, never the whole phase.
        ends = [0]
        ids = []
        for end, table in _frames(partial_path(self.path)):
            ends.append(end)
            ids.append(table["problem_id"][0].as_py())
        order = sorted(range(len(ids)), key=ids.__getitem__)
        with (
            pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as parquet,
            open(partial_path(self.path), "rb") as file,
        ):
            waiting: list[pa.Table] = []
            for index in order:
                file.seek(ends[index] + _HEADER.size)
                data = file.read(ends[index + 1] - ends[index] - _HEADER.size)
                waiting.append(pa.ipc.open_stream(data).read_all())
                if sum(map(len, waiting)) >= _ROWS_PER_WRITE:
                    parquet.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                parquet.write_table(pa.concat_tables(waiting))

    def close(self) -> None:
        """Close the partial file; what is kept stays. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RolloutWriter:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close; `finish` stays the caller's word."""
        self.close()
