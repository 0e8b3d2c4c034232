"""Labelled steps on disk: Parquet, one row a solution, durable problem by problem while annotation runs.

What Monte Carlo annotation writes and what a process reward model is fitted to, whoever made the labels. The columns
`problem`, `response_ids`, `step_ends` and `labels` are needed; `mc` is null where labels come from elsewhere, the rest
is for reading. A problem's images come from the data set, by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mstar_engine.models.compatibility import vocabulary_end
from mstar_engine.reward.steps import check_labels, check_steps, check_texts, step_texts
from mstar_engine.table_file import KEY, TableWriter, read_tables
from mstar_engine.types import LabelledSolution, MonteCarlo, Problem

_PROBLEM = ("id", "question", "gold", "source")
SCHEMA = pa.schema(
    [
        (KEY, pa.string()),
        ("problem", pa.struct([(name, pa.string()) for name in _PROBLEM])),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("correct", pa.bool_()),
        ("prompt_length", pa.int32()),
        ("response_ids", pa.list_(pa.int32())),
        ("step_ends", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.float32())),
        ("mc", pa.list_(pa.struct([("n", pa.int32()), ("correct", pa.int32())]))),
    ]
)
"""`step_ends` are exclusive token ends within `response_ids`; `labels` are in [0, 1], one a step."""
NEEDED = ("problem", "response_ids", "step_ends", "labels")


class LabelWriter(TableWriter):
    """Keeps labelled solutions, all of a problem at once. They are on the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, SCHEMA)

    def write(self, *problems: Sequence[LabelledSolution]) -> None:
        """Keep the solutions of some problems, each a sequence that is not empty."""
        self.append(*(_table(solutions) for solutions in problems))


def _table(solutions: Sequence[LabelledSolution]) -> pa.Table:
    rows = [
        {
            KEY: one.problem.id,
            "problem": {name: getattr(one.problem, name) for name in _PROBLEM},
            "sample": one.sample,
            "text": one.text,
            "correct": one.correct,
            "prompt_length": one.prompt_length,
            "response_ids": np.asarray(one.response_ids, np.int32),
            "step_ends": list(one.step_ends),
            "labels": list(one.labels),
            "mc": None if one.mc is None else [{"n": mc.n, "correct": mc.correct} for mc in one.mc],
        }
        for one in solutions
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read_labels(
    path: Path, tokenizer: PreTrainedTokenizerBase, problems: Mapping[str, Problem] | None = None
) -> list[LabelledSolution]:
    """The labelled solutions of a file (of an unfinished one those so far), checked row by row.

    `problems` gives the problems with their images, by id; without it they come without images. ValueError naming the
    file and the row (from 0) for a missing column, a problem that is not in `problems`, a response with no step, a step
    that is all white space, ends outside the response, or labels that do not match the steps.
    """
    found: list[LabelledSolution] = []
    end = vocabulary_end(tokenizer)
    try:
        tables = list(read_tables(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({str(error).strip().splitlines()[0]})") from error
    for table in tables:
        missing = [name for name in NEEDED if name not in table.column_names]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; needed: {', '.join(NEEDED)}")
        for name in [name for name in SCHEMA.names if name in table.column_names]:
            _need_type(path, name, table.schema.field(name).type)
        for row in table.to_pylist():
            found.append(_solution(row, f"{path}, row {len(found)}", tokenizer, end, problems))
    return found


def _need_type(path: Path, name: str, given: pa.DataType) -> None:
    """ValueError unless a column's type is as `SCHEMA` has it, wider or narrower numbers aside."""
    wanted = SCHEMA.field(name).type
    if pa.types.is_list(wanted) and (pa.types.is_list(given) or pa.types.is_large_list(given)):
        kinds = {pa.int32(): pa.types.is_integer, pa.float32(): lambda t: pa.types.is_floating(t) or
                 pa.types.is_integer(t)}.get(wanted.value_type, pa.types.is_struct)  # fmt: skip
        if kinds(given.value_type) or pa.types.is_null(given.value_type):
            return
    elif pa.types.is_struct(wanted):
        if pa.types.is_struct(given) and "id" in {given.field(i).name for i in range(given.num_fields)}:
            return
    elif not pa.types.is_list(wanted) or pa.types.is_null(given):
        return
    raise ValueError(f"{path}: column {name} is {given}; needed: {wanted}")


def _solution(
    row: dict[str, Any],
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    end: int,
    problems: Mapping[str, Problem] | None,
) -> LabelledSolution:
    empty = [name for name in NEEDED if row[name] is None]
    if empty:
        raise ValueError(f"{where}: {empty[0]} is null")
    holes = [name for name in ("response_ids", "step_ends", "labels") if None in row[name]]
    if holes:
        raise ValueError(f"{where}: {holes[0]} holds a null")
    said = row["problem"]
    if problems is not None and said["id"] not in problems:
        raise ValueError(f"{where}: problem {said['id']!r} is not in the data set")
    bad = [token for token in row["response_ids"] if not 0 <= token < end]
    if bad:
        raise ValueError(f"{where}: token id {bad[0]}; allowed: 0 to {end - 1}, the tokenizer's")
    ids, ends, labels = np.asarray(row["response_ids"], np.int32), tuple(row["step_ends"]), tuple(row["labels"])
    check_steps(ends, len(ids), where)
    check_labels(labels, ends, where)
    texts = step_texts(ids, tokenizer, ends)
    check_texts(texts, where)
    mc = row.get("mc")
    if mc is not None and not all(one and 0 <= (one.get("correct") or 0) <= (one.get("n") or 0) for one in mc):
        raise ValueError(f"{where}: mc holds {mc}; allowed: counts n and correct, with correct at most n")
    if mc is not None and len(mc) != len(ends):
        raise ValueError(f"{where}: {len(mc)} counts in mc for {len(ends)} steps; allowed: one a step, or null")
    text = row.get("text")
    return LabelledSolution(
        problem=problems[said["id"]]
        if problems is not None
        else Problem(**{name: said.get(name) or "" for name in ("id", "question", "source")}, gold=said.get("gold")),
        sample=row.get("sample") or 0,
        response_ids=ids,
        text="".join(texts) if text is None else text,
        correct=bool(row["correct"]) if row.get("correct") is not None else all(label > 0 for label in labels),
        prompt_length=row.get("prompt_length") or 0,
        step_ends=ends,
        labels=labels,
        mc=None if mc is None else tuple(MonteCarlo(one.get("n") or 0, one.get("correct") or 0) for one in mc),
    )
