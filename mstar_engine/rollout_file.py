"""Rollouts on disk: one row a response, durable group by group while sampling, Parquet when the phase is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mstar_engine.answer_type import read_answer_type, write_answer_type
from mstar_engine.table_file import TableWriter, read_tables
from mstar_engine.types import PSEUDO, Group, Problem, Response

_FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("label", pa.string()),
        ("truth", pa.string()),
        ("answer_type", pa.string()),
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
        ("reason", pa.string()),
        ("step_scores", pa.list_(pa.float64())),
        ("score", pa.float64()),
        ("selected", pa.bool_()),
    ]
)
_ARRAYS = ("logprobs", "scaled_logprobs", "filtered_logprobs", "entropy")
ADDED = {"label": "gold", "truth": None, "answer_type": None, "reason": None}
"""Columns that older files lack, and what they are there."""
_SCALARS = ("sample", "text", "finish_reason", "temperature", "answer", "correct", "reason", "score", "selected")


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
        "label": [problem.label] * rows,
        "truth": [problem.truth] * rows,
        "answer_type": [write_answer_type(problem.answer_type)] * rows,
        "prompt_length": [group.prompt_length] * rows,
        "token_ids": [np.asarray(r.token_ids, np.int32) for r in responses],
        "step_scores": [r.step_scores for r in responses],
    }
    columns |= {name: [getattr(r, name) for r in responses] for name in _SCALARS}
    columns |= {name: [np.asarray(getattr(r, name), np.float32) for r in responses] for name in _ARRAYS}
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def table_groups(table: pa.Table, problems: Mapping[str, Problem] | None = None) -> list[Group]:
    """Groups from rows of `SCHEMA`, in order of first appearance.

    The problems come from `problems` by id where given (images and all), else they are rebuilt without images. A
    pseudo-label is the rows' own either way: it came from these responses.
    """
    groups: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        groups.setdefault(row["problem_id"], []).append(row)
    return [_group(rows, problems) for rows in groups.values()]


def _group(rows: list[dict], problems: Mapping[str, Problem] | None) -> Group:
    # A phase that began with an older version has nulls in its first rows.
    first = {name: ADDED.get(name) if value is None else value for name, value in (ADDED | rows[0]).items()}
    answers = {name: first[name] for name in ("gold", "label", "truth")}
    problem = None if problems is None else problems.get(first["problem_id"])
    if problem is None:
        problem = Problem(id=first["problem_id"], question=first["question"], source=first["source"], **answers)
        problem = replace(problem, answer_type=read_answer_type(first["answer_type"]))
    elif first["label"] == PSEUDO:
        problem = replace(problem, **answers)
    responses = tuple(
        Response(
            token_ids=np.array(row["token_ids"], np.int32),
            step_scores=None if row["step_scores"] is None else tuple(row["step_scores"]),
            **{name: row.get(name) for name in _SCALARS},
            **{name: np.array(row[name], np.float32) for name in _ARRAYS},
        )
        for row in sorted(rows, key=lambda row: row["sample"])
    )
    return Group(problem=problem, responses=responses, prompt_length=first["prompt_length"])


def read_rollouts(path: Path, problems: Mapping[str, Problem] | None = None) -> list[Group]:
    """The groups of a finished phase, sorted by problem id, of an unfinished one those so far, as they finished.

    `path` is the Parquet file's either way.
    """
    return [group for table in read_tables(path) for group in table_groups(table, problems)]


class RolloutWriter(TableWriter):
    """Keeps the groups of one phase as rollouts of `iteration`. A group is on the disk when `write` returns."""

    def __init__(self, path: Path, iteration: int) -> None:
        super().__init__(path, SCHEMA)
        self.iteration = iteration

    def write(self, *groups: Group) -> None:
        """Keep finished groups; see `TableWriter.append`."""
        self.append(*(group_table(group, self.iteration) for group in groups))

    def groups(self, problems: Mapping[str, Problem] | None = None) -> list[Group]:
        """Every group kept so far, sorted by problem id; see `table_groups` for `problems`."""
        return sorted(read_rollouts(self.path, problems), key=lambda group: group.problem.id)
