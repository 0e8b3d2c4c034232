"""The named benchmarks: made-up rows in the columns of the published files."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import image_folder, png, read, reasons

from mstar_engine.answer_type import AnswerType
from mstar_engine.data.formats import FORMATS
from mstar_engine.data.record import FIELDS

PICTURE = {"bytes": png(1), "path": "1.png"}


def parquet(folder: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "set.parquet")
    return folder / "set.parquet"


def mathvista(**changed) -> dict:
    return {
        "pid": "3",
        "question": "How long?",
        "image": "images/3.jpg",
        "decoded_image": PICTURE,
        "choices": None,
        "unit": "cm",
        "precision": 1.0,
        "answer": "2.8",
        "question_type": "free_form",
        "answer_type": "float",
        "metadata": {"task": "geometry problem solving", "category": "math-targeted-vqa"},
        "query": "Hint: ...\nQuestion: How long?",
        **changed,
    }


def test_mathvista_in_parquet(tmp_path):
    texts = ["3", "4"]
    rows = [
        mathvista(),
        mathvista(
            pid="4",
            query="Which?",
            choices=texts,
            answer="4",
            question_type="multi_choice",
            answer_type="text",
            precision=None,
        ),
        mathvista(pid="5", query="Both?", answer="[1, 2]", answer_type="list", precision=None, unit=None),
        mathvista(pid="6", metadata={"task": "poetry", "category": "x"}),
    ]
    problems, quarantine = read(parquet(tmp_path, *rows), form="mathvista")
    assert [(p.id, p.gold, p.source) for p in problems] == [
        ("set/3", "2.8", "GPS"),
        ("set/4", "B", "GPS"),
        ("set/5", "[1, 2]", "GPS"),
    ]
    assert [p.answer_type for p in problems] == [
        AnswerType(kind="float", precision=1, units=("cm",)),
        AnswerType(kind="choice", choices=("3", "4")),
        AnswerType(kind="list"),
    ]
    assert problems[0].question == "Hint: ...\nQuestion: How long?"
    assert reasons(quarantine) == [(4, "metadata.task", "unknown category")]


def test_mathvista_as_an_object_of_rows_with_paths(tmp_path):
    folder = image_folder(tmp_path / "images").parent
    row = mathvista(image="images/3.png", answer="7", answer_type="integer", precision=None)
    del row["decoded_image"]
    (folder / "testmini.json").write_text(json.dumps({"3": row}))
    (problem,), _ = read(folder / "testmini.json", folder, form="mathvista")
    assert problem.images == (folder / "images" / "3.png",) and problem.answer_type.kind == "integer"


def test_m3cot(tmp_path):
    row = {
        "id": "biology-1",
        "category": "cells",
        "image_id": "1",
        "question": "Which?",
        "choices": ["a cell", "a wall"],
        "context": "Look.",
        "answer": "B",
        "rationale": "Because.",
        "split": "test",
        "image": PICTURE,
        "domain": "science",
        "topic": "biology",
    }
    problems, quarantine = read(parquet(tmp_path, row, row | {"id": "2", "domain": "arts"}), form="m3cot")
    (problem,) = problems
    assert problem.question == "Context: Look.\nWhich?\nChoices:\n(A) a cell\n(B) a wall"
    assert (problem.gold, problem.source) == ("B", "science") and problem.answer_type.choices == ("a cell", "a wall")
    assert [one.reason for one in quarantine.listed] == ["unknown category"]


def test_mmstar_keeps_its_reasoning_subsets(tmp_path):
    row = {"index": 0, "question": "Which?\nOptions: A: x, B: y", "image": png(1), "answer": "A", "l2_category": "z"}
    rows = [{**row, "index": i, "category": name} for i, name in enumerate(FORMATS["mmstar"].categories)]
    problems, quarantine = read(parquet(tmp_path, *rows), form="mmstar")
    assert [p.source for p in problems] == ["instance reasoning", "logical reasoning", "math", "science & technology"]
    assert quarantine.left_out == 2 and not quarantine.total
    assert {p.answer_type for p in problems} == {AnswerType(kind="choice", choices=("x", "y"))}
    assert len({p.images for p in problems}) == 1
    chosen, quarantine = read(tmp_path / "set.parquet", form="mmstar", categories=("coarse perception",))
    assert [p.id for p in chosen] == ["set/0"] and quarantine.left_out == 5


def test_mmstar_s_choices_stand_in_the_question(tmp_path):
    """Known where they are listed one by one; else only letters are, and the problem stays."""
    listed = {
        "Which?\nOptions: A: on the book., B: under, by B, C: Yes, no": ("on the book.", "under, by B", "Yes, no"),
        "Is it?\nOptions:\nA: Yes\nB: No": ("Yes", "No"),
        "Options: A: a, B: b\nOptions: A: c, B: d": ("c", "d"),
        "Which?\n(A) x\n(B) y": (),
        "Which?\nOptions: A: x, C: y": (),
        "Which?\nOptions: A: x, B: , C: y": (),
        "Which?\nOptions: A: x, B: y, A: z": (),
        "Which?\nOptions: see A: x, B: y": (),
        "Which?\nOptions: A: x": (),
    }  # fmt: skip
    rows = [
        {"index": i, "question": question, "image": png(1), "answer": "A", "category": "math"}
        for i, question in enumerate(listed)
    ]
    problems, quarantine = read(parquet(tmp_path, *rows), form="mmstar")
    assert [p.answer_type.choices for p in problems] == list(listed.values()) and not quarantine.total
    assert [p.question for p in problems] == list(listed)


def test_mmbench_in_tsv_with_images_by_reference(tmp_path):
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
    picture = base64.b64encode(png(2)).decode()
    rows = [
        ["1", "Which?", "A hint", "x", "y", "", "", "B", "c", picture, "logic_reasoning"],
        ["1000001", "Which?", "", "y", "x", "", "", "A", "c", "1", "logic_reasoning"],
        ["3", "Which?", "", "y", "x", "z", "", "C", "c", "77", "attribute_reasoning"],
        ["4", "Which?", "", "y", "x", "", "", "D", "c", picture, "relation_reasoning"],
        ["5", "Which?", "", "y", "", "z", "", "A", "c", picture, "relation_reasoning"],
        ["6", "Which?", "", "y", "x", "", "", "A", "c", picture, "coarse_perception"],
        ["7", "Which?"],
    ]
    (tmp_path / "dev.tsv").write_text("".join("\t".join(cells) + "\n" for cells in [header, *rows]))
    problems, quarantine = read(tmp_path / "dev.tsv", form="mmbench")
    assert [(p.id, p.gold) for p in problems] == [("dev/1", "B"), ("dev/1000001", "A")]
    assert problems[0].question == "Context: A hint\nWhich?\nChoices:\n(A) x\n(B) y"
    assert problems[0].images == problems[1].images and problems[0].images[0].read_bytes() == png(2)
    assert reasons(quarantine) == [
        (3, "image", "missing image"),
        (4, "answer", "bad gold"),
        (5, "AC", "bad choices"),
        (7, "", "unreadable row"),
    ]
    assert quarantine.left_out == 1


@pytest.mark.parametrize(("answer", "gold"), [("0", "A"), (2, "C"), ("3", None), ("x", None), (-1, None), (None, None)])
def test_ai2d_counts_choices_from_zero(tmp_path, answer, gold):
    row = {"question": "Which?", "options": ["1", "0", "2"], "answer": answer, "image": PICTURE}
    problems, quarantine = read(parquet(tmp_path, row), form="ai2d")
    assert [p.gold for p in problems] == ([gold] if gold else [])
    assert [one.reason for one in quarantine.listed] == ([] if gold else ["bad gold"])


def test_the_table_names_fields_and_categories_that_exist():
    for name, form in FORMATS.items():
        assert set(form.columns) <= set(FIELDS) and {"id", "question", "images"} <= set(form.columns), name
        assert set(form.kept) <= set(form.categories) and set(form.category_names) <= set(form.categories), name


def test_a_hub_s_folder_layout(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("testmini", "test"):
        pq.write_table(pa.Table.from_pylist([mathvista(pid=split)]), tmp_path / "data" / f"{split}-00000.parquet")
    (tmp_path / "README.md").touch()
    for split in ("testmini", "test"):
        problems, _ = read(tmp_path, form="mathvista", split=split)
        assert [p.id for p in problems] == [f"{tmp_path.stem}/{split}"]
