"""Labelled steps on disk: what is refused, by file and row."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.label_file import SCHEMA, read_labels
from mstar_engine.types import Problem

TOKENIZER = build_tiny(0)[1].tokenizer
IDS = TOKENIZER("red 7\n\nblue 5\n\n# Answer 12", add_special_tokens=False)["input_ids"]
GOOD = {
    "problem_id": "a",
    "problem": {"id": "a", "question": "q", "gold": "12", "source": ""},
    "sample": 0,
    "text": None,
    "correct": None,
    "prompt_length": None,
    "response_ids": IDS,
    "step_ends": [3, 6, len(IDS)],
    "labels": [1.0, 0.5, 0.0],
    "mc": None,
}


def written(path: Path, *changes: dict) -> Path:
    """A file whose rows are good ones with these changes."""
    pq.write_table(pa.Table.from_pylist([GOOD | change for change in changes], schema=SCHEMA), path)
    return path


def test_labels_from_elsewhere_need_four_columns_only(tmp_path: Path) -> None:
    """Problem, ids, ends and labels; what is missing is made of them."""
    needed = {name: GOOD[name] for name in ("problem", "response_ids", "step_ends", "labels")}
    path = tmp_path / "prm.parquet"
    fields = [SCHEMA.field(name) for name in needed]
    pq.write_table(pa.Table.from_pylist([needed], schema=pa.schema(fields)), path)
    (one,) = read_labels(path, TOKENIZER)
    assert (one.text, one.correct, one.mc) == ("red 7\n\nblue 5\n\n# Answer 12", False, None)
    assert one.problem == Problem(id="a", question="q", gold="12")
    given = Problem(id="a", question="q", images=("x.png",), gold="12")
    assert read_labels(path, TOKENIZER, {"a": given})[0].problem is given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_ends": [], "labels": []}, "no step"),
        ({"step_ends": [3, 3, 6]}, "step 1 ends at token 3"),
        ({"step_ends": [3, 6, len(IDS) + 1]}, f"step 2 ends at token {len(IDS) + 1}"),
        ({"step_ends": [2, 3, len(IDS)]}, r"step 1 is '\\n\\n'; allowed: a step with more than white space"),
        ({"labels": [1.0, 0.5]}, "2 labels for 3 steps"),
        ({"labels": [1.0, 0.5, 1.5]}, "step 2 has label 1.5"),
        ({"labels": [1.0, float("nan"), 0.0]}, "step 1 has label nan"),
        ({"labels": None}, "labels is null"),
        ({"mc": [{"n": 1, "correct": 0}]}, "1 counts in mc for 3 steps"),
        ({"response_ids": [1, None, 3]}, "response_ids holds a null"),
        ({"response_ids": [1, 99999, 3], "step_ends": [1, 2, 3]}, "token id 99999; allowed: 0 to"),
        ({"response_ids": [1, -1, 3], "step_ends": [1, 2, 3]}, "token id -1; allowed: 0 to"),
        ({"mc": [{"n": 1, "correct": 2}] * 3}, "mc holds .*; allowed: counts n and correct"),
        ({"mc": [None] * 3}, "mc holds .*; allowed: counts n and correct"),
        ({"problem": {"id": "b", "question": "", "gold": "", "source": ""}}, "problem 'b' is not in the data set"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict, message: str) -> None:
    """The file, the row from 0, and what is wrong with it."""
    path = written(tmp_path / "prm.parquet", {}, change)
    with pytest.raises(ValueError, match=f"{path}, row 1: {message}"):
        read_labels(path, TOKENIZER, {"a": Problem(id="a", question="q")})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """With the columns that are needed."""
    path = tmp_path / "prm.parquet"
    pq.write_table(pa.table({"problem": [GOOD["problem"]], "labels": [[1.0]]}), path)
    with pytest.raises(ValueError, match=f"{path}: no column response_ids, step_ends; needed: problem, "):
        read_labels(path, TOKENIZER)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("problem", ["a"], "column problem is string"),
        ("step_ends", [[1.5]], "column step_ends is list<element: double>|column step_ends is list<item: double>"),
        ("labels", [["good"]], "column labels is list"),
        ("response_ids", ["1 2 3"], "column response_ids is string"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: str, values: list, said: str) -> None:
    """With what is needed; not a traceback from inside."""
    needed = {
        name: pa.array([GOOD[name]], SCHEMA.field(name).type) for name in ("problem", "response_ids", "step_ends")
    }
    needed["labels"] = pa.array([GOOD["labels"]], SCHEMA.field("labels").type)
    path = tmp_path / "prm.parquet"
    pq.write_table(pa.table(needed | {column: values}), path)
    with pytest.raises(ValueError, match=said):
        read_labels(path, TOKENIZER)
    path.write_text("not Parquet")
    with pytest.raises(ValueError, match=f"{path}: cannot be read as Parquet"):
        read_labels(path, TOKENIZER)
