"""Tables that grow group by group: durable while a phase runs, Parquet when it is over.

While a phase runs, `<name>.partial` grows by one frame a group: length, CRC-32, then the group's rows as an Arrow
stream. A torn or damaged tail ends the readable part, so a crash at any byte costs at most the group being written.
`finish` turns the frames into Parquet, sorted by problem: the file does not depend on the order of finishing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from mstar_engine.durable import AppendFile, replace_file, sync_folder

KEY = "problem_id"
"""The column that names a group: all rows of a frame share it."""
_HEADER = struct.Struct("<II")
_ROWS_PER_WRITE = 4096


def read_tables(path: Path) -> Iterator[pa.Table]:
    """The rows of a finished phase (one table), of an unfinished one those so far, group by group.

    `path` is the Parquet file's either way.
    """
    if path.exists():
        yield pq.read_table(path)
        return
    for _, table in _frames(partial_path(path)):
        yield table


def partial_path(path: Path) -> Path:
    """Where the rows of `path` are kept until their phase is over."""
    return path.with_suffix(".partial")


def _frame(table: pa.Table) -> bytes:
    """The rows of a group as they stand in a partial file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
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


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows of a group in today's columns: a phase may have begun with a version that had fewer."""
    if table.schema.equals(schema):
        return table
    missing = [field for field in schema if field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names) if missing else table


class TableWriter:
    """Keeps the groups of one phase, each a table of `schema`. A group is on the disk when `append` returns.

    `finished`: the ids of the problems kept so far; nobody has to do them again. `complete`: the phase is over, now or
    in an earlier sitting.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open the phase whose Parquet file will be `path`; what a crash tore is cut off."""
        self.path, self.schema = path, schema
        self.complete = path.exists()
        self.finished: set[str] = set()
        self._file: AppendFile | None = None
        if self.complete:
            self.finished = set(pq.read_table(path, columns=[KEY])[KEY].to_pylist())
            partial_path(path).unlink(missing_ok=True)
            return
        length = 0
        for end, table in _frames(partial_path(path)):
            length = end
            self.finished.add(table[KEY][0].as_py())
        self._file = AppendFile(partial_path(path), length)

    def append(self, *tables: pa.Table) -> None:
        """Keep the rows of finished groups; those that finished together share one wait for the disk, most of the cost.

        ValueError when a problem is kept already; OSError leaves the file as it was.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: the phase is over; more groups come too late")
        data, names = b"", set()
        for table in tables:
            name = table[KEY][0].as_py()
            if name in self.finished or name in names:
                raise ValueError(f"{self.path}: problem {name} is kept already")
            names.add(name)
            data += _frame(table)
        self._file.append(data)
        self.finished |= names

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
            ids.append(table[KEY][0].as_py())
        order = sorted(range(len(ids)), key=ids.__getitem__)
        with (
            pq.ParquetWriter(temporary, self.schema, compression="zstd") as parquet,
            open(partial_path(self.path), "rb") as file,
        ):
            waiting: list[pa.Table] = []
            for index in order:
                file.seek(ends[index] + _HEADER.size)
                data = file.read(ends[index + 1] - ends[index] - _HEADER.size)
                waiting.append(_conformed(pa.ipc.open_stream(data).read_all(), self.schema))
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

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close; `finish` stays the caller's word."""
        self.close()
