"""Rows to problems: every format, every flaw named by file, row, id and field, and no other row lost."""

import base64
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rows import image_folder, picture, png, read, reasons, write_rows

from mstar_engine.answer_type import AnswerType
from mstar_engine.data import json_rows
from mstar_engine.data.flaw import Flaw
from mstar_engine.data.images import DECODED, ImageLimits
from mstar_engine.data.reader import Source


def row(i: int, **changed) -> dict:
    return {"id": f"p{i}", "question": f"What is {i}?", "image": f"{i % 4}.png", "answer": str(i), **changed}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path)


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet", "tsv", "csv"])
def test_the_same_problems_whatever_the_file(folder, ending):
    rows = [row(i) for i in range(5)]
    path = folder / f"set.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif ending in ("tsv", "csv"):
        lines = [list(rows[0]), *(one.values() for one in rows)]
        path.write_text("".join(("\t" if ending == "tsv" else ",").join(line) + "\n" for line in lines))
    else:
        write_rows(path, rows)
    problems, quarantine = read(path)
    assert [(p.id, p.question, p.gold) for p in problems] == [(f"set/p{i}", f"What is {i}?", str(i)) for i in range(5)]
    assert [p.images for p in problems] == [(folder / f"{i % 4}.png",) for i in range(5)]
    assert quarantine.rows == 5 and not quarantine.total


def test_a_folder_of_files_counts_on_where_rows_have_no_ids(folder):
    for part in ("train-0", "train-1", "test-0"):
        (folder / "data").mkdir(exist_ok=True)
        rows = [{name: value for name, value in row(i).items() if name != "id"} for i in range(2)]
        write_rows(folder / "data" / f"{part}.jsonl", rows)
    problems, _ = read(folder, folder, split="train")
    assert [p.id for p in problems] == [f"{folder.stem}/{i}" for i in (1, 2, 3, 4)]


def test_a_field_map_reaches_into_columns_and_may_leave_one_out(folder):
    path = write_rows(
        folder / "a.jsonl",
        [
            {
                "pid": 7,
                "query": "How long?",
                "meta": {"pic": "0.png", "task": "lengths"},
                "gold": 2.5,
                "p": 1,
                "k": "float",
            }
        ],
    )
    fields = {"id": "pid", "question": "query", "images": "meta.pic", "gold": "gold", "precision": "p"}
    (problem,), _ = read(path, fields={**fields, "answer_type": "k", "category": "meta.task"})
    assert (problem.id, problem.gold, problem.source) == ("a/7", "2.5", "lengths")
    assert problem.answer_type == AnswerType(kind="float", precision=1)
    (problem,), _ = read(path, fields={**fields, "id": ""})
    assert problem.id == "a/1" and problem.answer_type is None


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"answer": math.nan}, "answer", "bad gold"),
        ({"answer": math.inf}, "answer", "bad gold"),
        ({"answer": ""}, "answer", "bad gold"),
        ({"answer": "  "}, "answer", "bad gold"),
        ({"answer": None}, "answer", "bad gold"),
        ({"answer": "NaN"}, "answer", "bad gold"),
        ({"answer": True}, "answer", "bad gold"),
        ({"answer": ["1"]}, "answer", "bad gold"),
        ({"answer": {"a": 1}}, "answer", "bad gold"),
        ({"answer": "\ud800"}, "answer", "bad gold"),
        ({"answer": "3.5", "answer_type": "integer"}, "answer", "bad gold"),
        ({"answer": "x", "answer_type": "float"}, "answer", "bad gold"),
        ({"answer": "inf", "answer_type": "float"}, "answer", "bad gold"),
        ({"answer": "1", "answer_type": "float", "precision": 1.5}, "precision", "bad type"),
        ({"answer": "1", "answer_type": "float", "precision": -1}, "precision", "bad type"),
        ({"answer": "1", "answer_type": "number of legs"}, "answer_type", "bad type"),
        ({"answer": "C", "choices": ["x", "y"]}, "answer", "bad gold"),
        ({"answer": "A", "choices": ["B", "A"]}, "answer", "bad gold"),
        ({"answer": "A", "choices": "xy"}, "choices", "bad choices"),
        ({"answer": "A", "choices": ["x"]}, "choices", "bad choices"),
        ({"answer": "A", "choices": ["x", None]}, "choices", "bad choices"),
        ({"answer": "A", "choices": ["x"] * 27}, "choices", "bad choices"),
        ({"question": ""}, "question", "bad question"),
        ({"question": None}, "question", "bad question"),
        ({"question": 7}, "question", "bad question"),
        ({"question": "a\0b"}, "question", "bad question"),
        ({"question": "<image>"}, "question", "bad question"),
        ({"question": "<image><image> What?"}, "question", "placeholders"),
        ({"question": "<|image_pad|> What?"}, "question", "placeholders"),
        ({"image": "9.png"}, "image", "missing image"),
        ({"image": "a\0b"}, "image", "missing image"),
        ({"image": "a" * 5000}, "image", "unreadable image"),
        ({"image": 7}, "image", "missing image"),
        ({"image": ["0.png", None]}, "image", "missing image"),
        ({"image": "."}, "image", "missing image"),
        ({"image": "../outside.png"}, "image", "refused image"),
        ({"image": "/etc/hostname"}, "image", "refused image"),
        ({"image": "link.png"}, "image", "refused image"),
        ({"image": "https://example.com/a.png"}, "image", "refused image"),
        ({"image": "cut.png"}, "image", "unreadable image"),
        ({"image": "text.png"}, "image", "unreadable image"),
        ({"image": "empty.png"}, "image", "unreadable image"),
        ({"image": "large.png"}, "image", "oversized image"),
        ({"image": "data:image/png;base64,!!"}, "image", "unreadable image"),
        ({"id": ""}, "id", "bad id"),
        ({"id": None}, "id", "bad id"),
        ({"id": 1.5}, "id", "bad id"),
        ({"id": "p0"}, "id", "conflicting id"),
    ],
)
def test_a_flawed_row_is_named_and_the_others_are_read(tmp_path, changed, field, reason):
    folder = image_folder(tmp_path / "images")
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "cut.png").write_bytes(png()[:-30])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes(png(0, (40, 40)))
    path = write_rows(tmp_path / "set.json", [row(0), row(1), row(2, **changed), row(3)])
    problems, quarantine = read(path, folder, limits=ImageLimits(pixels=1000))
    assert [p.gold for p in problems] == ["0", "1", "3"]
    assert reasons(quarantine) == [(3, field, reason)]
    one = quarantine.listed[0]
    assert one.file == str(path) and one.id == (
        None
        if changed.get("id", 0) is None
        else changed.get("id", "p2")
        if isinstance(changed.get("id", "p2"), str)
        else "1.5"
    )
    with pytest.raises(
        ValueError, match=f"1 of 4 rows set aside \\({reason} 1\\), 25.00%; allowed: data.max_quarantined=0.2.*row 3"
    ):
        quarantine.settle("training set", 0.2)
    quarantine.settle("training set", 0.25)
    quarantine.write(tmp_path / "out" / "q.jsonl")
    (line,) = (tmp_path / "out" / "q.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("row", "field", "reason")} == {
        "row": 3,
        "field": field,
        "reason": reason,
    }


def test_rows_that_are_there_twice_alike_are_one(folder):
    problems, quarantine = read(write_rows(folder / "a.jsonl", [row(0), row(1), row(0)]))
    assert len(problems) == 2 and quarantine.repeated == 1 and not quarantine.total


def test_golds_are_not_asked_of_unlabelled_rows(folder):
    path = write_rows(folder / "a.jsonl", [row(0, answer=None), row(1)])
    assert [p.gold for p in read(path, golds=False)[0]] == [None, "1"]


@pytest.mark.parametrize(
    ("changed", "gold", "answer_type"),
    [
        ({"answer": 3}, "3", None),
        ({"answer": 3.0}, "3", None),
        ({"answer": 0.25}, "0.25", None),
        (
            {"answer": "1,024", "answer_type": "integer", "unit": " cm "},
            "1,024",
            AnswerType(kind="integer", units=("cm",)),
        ),
        ({"answer": "1/3", "answer_type": "float"}, "1/3", AnswerType(kind="float")),
        ({"answer": [1, 2], "answer_type": "list"}, "[1, 2]", AnswerType(kind="list")),
        ({"answer": "\\frac12", "answer_type": "latex"}, "\\frac12", AnswerType(kind="latex")),
        ({"answer": "(b)", "choices": ["x", "y"]}, "B", AnswerType(kind="choice", choices=("x", "y"))),
        ({"answer": " Y ", "choices": ["x", "y"]}, "B", AnswerType(kind="choice", choices=("x", "y"))),
        ({"answer": "B", "choices": {"A": "x", "B": "y"}}, "B", AnswerType(kind="choice", choices=("x", "y"))),
    ],
)
def test_golds_are_text_with_a_type(folder, changed, gold, answer_type):
    (problem,), _ = read(write_rows(folder / "a.jsonl", [row(0, **changed)]))
    assert (problem.gold, problem.answer_type) == (gold, answer_type)


def test_images_as_bytes_and_base64_are_kept_once(folder):
    data = png(9)
    text = base64.b64encode(data).decode()
    rows = [
        {"id": 1, "question": "a", "answer": "1", "images": [{"bytes": data, "path": None}]},
        {
            "id": 2,
            "question": "b",
            "answer": "1",
            "images": [{"bytes": data, "path": "x.png"}, {"bytes": data, "path": None}],
        },
        {"id": 3, "question": "c", "answer": "1", "images": [{"bytes": None, "path": "0.png"}]},
        {"id": 4, "question": "d", "answer": "1", "images": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    problems, quarantine = read(folder / "a.parquet")
    assert not quarantine.total, quarantine.in_words()
    kept = problems[0].images[0]
    assert problems[1].images == (kept, kept) and kept.read_bytes() == data and kept.is_relative_to(folder / "cache")
    assert problems[2].images == (folder / "0.png",) and problems[3].images == ()
    (problem,), _ = read(write_rows(folder / "b.jsonl", [row(0, image="data:image/png;base64," + text)]))
    assert problem.images == (kept,)


def llava(question: str, answer: str | None = "The answer is 4.", **changed) -> dict:
    turns = [{"from": "human", "value": question}, *([] if answer is None else [{"from": "gpt", "value": answer}])]
    return {"id": "1", "image": "0.png", "conversations": turns, **changed}


@pytest.mark.parametrize(
    ("question", "image", "text"),
    [
        ("<image>\nWhat?", "0.png", "What?"),
        ("What?\n<image>", ["0.png"], "What?"),
        ("What is in <image> here?", "0.png", "What is in the image here?"),
        ("<image> <image>\nWhat?", ["0.png", "1.png"], "What?"),
        ("Is <image> like <image>?", ["0.png", "1.png"], "Is image 1 like image 2?"),
        ("<image>\nWhat of <image>?", ["0.png", "1.png"], "What of image 2?"),
        ("What?", [], "What?"),
    ],
)
def test_the_template_places_images(folder, question, image, text):
    (problem,), _ = read(write_rows(folder / "a.json", [llava(question, image=image)]), form="llava")
    assert problem.question == text and len(problem.images) == (1 if isinstance(image, str) else len(image))
    assert problem.gold == "The answer is 4." and problem.response is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"conversations": []}, "bad question"),
        ({"conversations": "What?"}, "bad question"),
        ({"conversations": [{"from": "gpt", "value": "4"}]}, "bad question"),
        ({"conversations": [{"from": "human", "value": "<image>a"}] * 2}, "bad question"),
        (
            {"conversations": [{"from": who, "value": "<image>a"} for who in ("human", "gpt") * 2]},
            "several questions",
        ),
        ({"conversations": [{"from": "robot", "value": "<image>a"}]}, "bad question"),
        ({"conversations": [{"from": "human", "value": "<image>a"}]}, "bad gold"),
        ({"conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": 4}]}, "bad gold"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "4"}]}, "placeholders"),
        ({"image": ["0.png", "1.png"]}, "placeholders"),
        ({"image": None}, "placeholders"),
    ],
)
def test_flawed_conversations(folder, changed, reason):
    problems, quarantine = read(write_rows(folder / "a.json", [llava("<image>\nWhat?", **changed)]), form="llava")
    assert not problems and [one.reason for one in quarantine.listed] == [reason]


def test_chat_messages_and_demonstrations(folder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Four\n\n# Answer 4"},
    ]
    path = write_rows(folder / "a.jsonl", [{"images": ["0.png"], "messages": messages}])
    (problem,), _ = read(path, form="sharegpt", responses=True)
    assert problem.question == "Be brief.\nWhat?"
    assert problem.response == "Four\n\n# Answer 4" and problem.id == "a/1"


@pytest.mark.parametrize(
    ("question", "answer", "gold", "answer_type"),
    [
        (
            "<image>\nHint: Please answer the question and provide the correct option letter, e.g., A, at the end."
            "\nQuestion: How long?\nChoices:\n(A) 3\n(B) 4 cm",
            "The answer is B",
            "B",
            AnswerType(kind="choice", choices=("3", "4 cm")),
        ),
        (
            "<image>\nHint: Please answer the question requiring an integer answer and say it.\nQuestion: n?",
            "So 3 + 4 = 7. The answer is 7.",
            "7",
            AnswerType(kind="integer"),
        ),
        (
            "<image>\nHint: ... requiring a floating-point number with two decimal places.\nQuestion: x?",
            "1.25",
            "1.25",
            AnswerType(kind="float", precision=2),
        ),
        ("<image>\nIs it red?", "no", "no", None),
    ],
)
def test_mathv360k_golds_are_typed_by_the_hint(folder, question, answer, gold, answer_type):
    (problem,), _ = read(write_rows(folder / "a.json", [llava(question, answer)]), form="mathv360k")
    assert (problem.gold, problem.answer_type) == (gold, answer_type)
    assert problem.question == question.removeprefix("<image>\n")


def test_a_mathv360k_row_whose_hint_and_gold_disagree_is_set_aside(folder):
    question = "<image>\nHint: ... requiring an integer answer and ...\nQuestion: n?"
    _, quarantine = read(write_rows(folder / "a.json", [llava(question, "The answer is red.")]), form="mathv360k")
    assert reasons(quarantine) == [(1, "conversations", "bad gold")]


def rows_read(path: Path) -> list:
    return [values if isinstance(values, dict) else str(values) for _, values in json_rows.json_rows(path)]


@pytest.mark.parametrize("chunk", [1, 13, 1 << 20])
def test_a_damaged_array_loses_only_what_is_damaged(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    monkeypatch.setattr(json_rows, "_AHEAD", 4 * chunk)
    rows = [{"id": i, "turns": [{"from": "a", "v": "}, {é"}, {"from": "b", "v": '\\"'}]} for i in range(9)]
    text = json.dumps(rows, ensure_ascii=False).encode()
    path, at = tmp_path / "a.json", text.index(b'"id": 4')
    for damaged, left in (
        (text, rows),
        (b"\xef\xbb\xbf  " + text + b"\n ", rows),
        (text[:at] + text[at + 1 :], rows[:4] + rows[5:]),  # a quote is gone
        (text[: at - 1] + text[at:], rows[:4] + rows[5:]),  # a brace is gone
        (text[:at] + b"}" + text[at:], rows[:4] + rows[5:]),
        (text[:at] + b"\xff" + text[at:], rows[:4] + rows[5:]),
        (text[: at + 10] + text[at + 10 :].replace("é".encode(), b"\xc3", 1), rows[:4] + rows[5:]),
        (text[: at - 3] + text[at - 1 :], rows[:3] + rows[4:]),  # a comma is gone
        (text[:at] + b'"id": ' + b"9" * 5000 + b", " + text[at:], rows[:4] + rows[5:]),
        (text[:-20], rows[:8]),
        (text[:-1], rows[:8]),
        (text + b"]", rows[:8]),
        (text[: at + 3], rows[:4]),
    ):
        path.write_bytes(damaged)
        read_back = rows_read(path)
        assert [one for one in read_back if isinstance(one, dict)] == left, damaged
        assert len(read_back) >= len(rows[: len(left) + 1]), damaged  # what is missing is told
    for empty in (b"[]", b" [ ] "):
        path.write_bytes(empty)
        assert rows_read(path) == []


@pytest.mark.parametrize("text", [b"", b"7", b'"a"', b"{", b"\xff\xfe[\x00", b"\x00"])
def test_files_that_hold_no_rows_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        read(tmp_path / "a.json")


def test_an_object_of_rows(folder):
    (folder / "a.json").write_text(json.dumps({"1": row(1), "2": row(2), "3": 5}))
    problems, quarantine = read(folder / "a.json")
    assert [p.gold for p in problems] == ["1", "2"] and reasons(quarantine) == [(3, "", "unreadable row")]


def test_damaged_lines_and_groups(folder):
    lines = [json.dumps(row(i)).encode() for i in range(5)]
    lines[1], lines[3] = lines[1][:-4], lines[3].replace(b"What", b"Wh\xe9t")
    (folder / "a.jsonl").write_bytes(b"\n".join([*lines[:2], b"", *lines[2:], b"[" * 100_000, b"7"]))
    problems, quarantine = read(folder / "a.jsonl")
    assert [p.gold for p in problems] == ["0", "2", "4"]
    assert reasons(quarantine) == [(n, "", "unreadable row") for n in (2, 5, 7, 8)]
    table = pa.Table.from_pylist([row(i, question="w" * 300 + str(i)) for i in range(6)])
    options = {"row_group_size": 2, "compression": "none", "use_dictionary": False, "write_page_checksum": True}
    options["write_statistics"] = False
    pq.write_table(table, folder / "a.parquet", **options)
    data = bytearray((folder / "a.parquet").read_bytes())
    data[data.index(b"w" * 299 + b"w2") + 5] ^= 1
    (folder / "a.parquet").write_bytes(data)
    problems, quarantine = read(folder / "a.parquet")
    assert [p.gold for p in problems] == ["0", "1", "4", "5"]
    assert reasons(quarantine) == [(n, "", "unreadable row") for n in (3, 4)]


def test_a_line_without_end_does_not_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    (folder / "a.jsonl").write_text(json.dumps(row(0, question="w" * 5000)) + "\n" + json.dumps(row(1)) + "\n")
    problems, quarantine = read(folder / "a.jsonl")
    assert [p.gold for p in problems] == ["1"] and reasons(quarantine) == [(1, "", "unreadable row")]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"form": "mathvist"}, "allowed: rows, llava"),
        ({"fields": {"gould": "a"}}, "gould; allowed: id"),
        ({"form": "mmstar", "categories": ("maths",)}, "maths; allowed: coarse"),
    ],
)
def test_sources_that_do_not_exist(said, message):
    with pytest.raises(ValueError, match=message):
        Source(path="x", **said)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "none").mkdir()
    for path, message in (
        (tmp_path / "a.txt", "ends in '.txt'"),
        (tmp_path / "none", "no file of rows"),
        ("nowhere.json", "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path, tmp_path)


def test_a_file_is_not_taken_for_another_split(tmp_path):
    rows = write_rows(tmp_path / "test-0.jsonl", [{"id": 1, "question": "a", "answer": "1"}])
    assert len(read(rows, tmp_path, split="test")[0]) == 1
    with pytest.raises(ValueError, match=r"test-0.jsonl#val: one file, of no such split; allowed: "):
        read(rows, tmp_path, split="val")


def test_saved_hugging_face_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [picture(i) for i in range(3)]
    rows = {"id": [1, 2, 3], "question": ["a", "b", "c"], "answer": ["1", "2", "3"], "image": images}
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    for problems, _ in (read(tmp_path / "both", split="train"), read(tmp_path / "one")):
        assert [p.gold for p in problems] == ["1", "2", "3"]
        assert [Image.open(p.images[0]).tobytes() for p in problems] == [image.tobytes() for image in images]
    with pytest.raises(ValueError, match="split ''; allowed: train, test"):
        read(tmp_path / "both")


def test_without_the_library_hub_names_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        read("owner/name", Path("."))


def test_flaws_are_errors_with_a_reason():
    assert Flaw("bad gold", "answer", "none").reason == "bad gold"


def test_sound_files_are_looked_at_once_and_changed_ones_again(folder):
    path = write_rows(folder / "a.jsonl", [row(i) for i in range(8)])
    before = DECODED.images
    read(path)
    assert DECODED.images == before + 4
    assert len(read(path)[0]) == 8 and DECODED.images == before + 4
    (folder / "1.png").write_bytes(png(1)[:-30])
    assert reasons(read(path)[1]) == [(2, "image", "unreadable image"), (6, "image", "unreadable image")]
    assert len(reasons(read(path)[1])) == 2  # what is flawed is never noted
    read(path, limits=ImageLimits(pixels=500))
    assert DECODED.images > before + 4
    noted = folder / "cache" / "checked_images"
    noted.write_bytes(noted.read_bytes()[:-7])  # torn
    (folder / "1.png").write_bytes(png(1))
    assert len(read(path)[0]) == 8 and not read(path)[1].total
