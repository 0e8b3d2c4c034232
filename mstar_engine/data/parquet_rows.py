"""Rows of Parquet files, a batch at a time; a damaged row group costs its own rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mstar_engine.data.flaw import Flaw
from mstar_engine.data.json_rows import Rows

_ROWS = 64  # rows may hold whole images


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file, numbered from 1. ValueError when its footer cannot be read."""
    try:
        # Pages that have a checksum are held to it.
        file = pq.ParquetFile(path, page_checksum_verification=True)
        # No field is a time, and Python has none for many: such columns must not cost the others.
        plain = [field.name for field in file.schema_arrow if not pa.types.is_temporal(field.type)]
        columns = plain if len(plain) < len(file.schema_arrow) else None
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from None
    with file:
        before = 0
        for index, size in enumerate(groups):
            done = 0
            try:
                for batch in file.iter_batches(_ROWS, row_groups=[index], columns=columns):
                    batch.validate(full=True)
                    for row in batch.to_pylist():
                        done += 1
                        yield before + done, row
            # Text that is not UTF-8, and times inside of structures that Python has no number for.
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                for number in range(before + done + 1, before + size + 1):
                    yield number, Flaw("unreadable row", "", f"damaged row group {index}: {error}")
            before += size
