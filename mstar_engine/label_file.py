"""Labelled steps on disk: one row a solution, Parquet, durable problem by problem while annotation runs.

What Monte Carlo annotation writes and what a process reward model is fitted to, whoever made it. `problem` holds what
is needed to show and find the problem; its images come from the data set, by id. `prompt_length` and `sample` are for
reading, `mc` is null where labels come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from mstar_engine.table_file import KEY

SCHEMA = pa.schema(
    [
        (KEY, pa.string()),
        ("problem", pa.struct([("id", pa.string()), ("question", pa.string()), ("gold", pa.string()),
                               ("source", pa.string())])),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("correct", pa.bool_()),
        ("prompt_length", pa.int32()),
        ("response_ids", pa.list_(pa.int32())),
        ("step_ends", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.float32())),
        ("mc", pa.list_(pa.struct([("n", pa.int32()), ("correct", pa.int32())]))),
    ]
)  # fmt: skip
"""`step_ends` are exclusive token ends within `response_ids`; `labels` are in [0, 1], one a step."""


def labels_path(run: Path, name: str) -> Path:
    """Where a run keeps the labelled steps of the problem set `name`."""
    return run / "annotations" / f"{name}.parquet"
