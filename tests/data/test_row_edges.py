"""Rows and files that are odd in one place: that place alone must be refused, and in a moment."""

from __future__ import annotations

import io
import struct
import zlib
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from rows import image_folder, png, read, reasons, write_rows

from mstar_engine.answer_type import AnswerType
from mstar_engine.data import json_rows
from mstar_engine.data.image_integrity import MOST_SCANS, ImageError
from mstar_engine.data.images import ImageLimits, decode, image_size

SOUND = {"question": "How many?", "answer": "3"}


@pytest.mark.parametrize("gold", ["1/--2", "1/+-2", "--1/2", "1/", "/2", "1/2/3", "1/0"])
def test_a_fraction_that_is_none_costs_its_own_row(tmp_path, gold):
    rows = [SOUND | {"answer": gold, "answer_type": "float"}, SOUND]
    problems, quarantine = read(write_rows(tmp_path / "a.jsonl", rows))
    assert len(problems) == 1
    assert reasons(quarantine) == [(1, "answer", "bad gold")]


@pytest.mark.parametrize("gold", ["3/4", "-3/4", "3/-4", " 3 / 4 "])
def test_fractions_are_numbers(tmp_path, gold):
    problems, _ = read(write_rows(tmp_path / "a.jsonl", [SOUND | {"answer": gold, "answer_type": "float"}]))
    assert [p.gold for p in problems] == [gold.strip()]


def test_times_beside_the_fields_cost_nothing(tmp_path):
    columns = {
        "question": ["a", "b"],
        "answer": ["1", "2"],
        "at": pa.array([1, 2000], pa.timestamp("ns")),
        "day": pa.array([1, 2**30], pa.date32()),
        "taken": pa.array([1, 2], pa.duration("ns")),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    problems, quarantine = read(tmp_path / "a.parquet")
    assert [p.gold for p in problems] == ["1", "2"]
    assert not quarantine.listed


def test_times_inside_of_structures_cost_their_row_group(tmp_path):
    said = pa.array([{"at": 1}, {"at": 2}], pa.struct([("at", pa.timestamp("ns"))]))
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["1", "2"], "said": said}), tmp_path / "a.parquet")
    problems, quarantine = read(tmp_path / "a.parquet")
    assert not problems
    assert reasons(quarantine) == [(1, "", "unreadable row"), (2, "", "unreadable row")]


def test_numbers_are_written_alike_in_golds_and_choices(tmp_path):
    columns = {"question": ["a", "b"], "answer": [1.0, 2.5], "choices": [[1.0, 2.5], [1.0, 2.5]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    problems, _ = read(tmp_path / "a.parquet")
    assert [(p.gold, p.answer_type) for p in problems] == [
        (letter, AnswerType(kind="choice", choices=("1", "2.5"))) for letter in "AB"
    ]


@pytest.mark.parametrize("precision", ["2", "2.0", 2.0, 2, " 2. "])
def test_a_precision_is_a_number_however_it_is_written(tmp_path, precision):
    row = SOUND | {"answer": "1.25", "answer_type": "float", "precision": precision}
    problems, _ = read(write_rows(tmp_path / "a.jsonl", [row]))
    assert problems[0].answer_type.precision == 2


@pytest.mark.parametrize("items", [[1, float("inf")], [1, True], [1, float("nan")], [1, ""], [1, None]])
def test_lists_of_what_is_no_item_are_refused(tmp_path, items):
    problems, quarantine = read(write_rows(tmp_path / "a.jsonl", [SOUND | {"answer": items, "answer_type": "list"}]))
    assert not problems
    assert reasons(quarantine) == [(1, "answer", "bad gold")]


def test_a_tsv_ending_in_capitals_is_one(tmp_path):
    (tmp_path / "a.TSV").write_text("index\tquestion\tanswer\n1\ta, b\t2\n")
    problems, _ = read(tmp_path / "a.TSV", fields={"id": "index"})
    assert [(p.question, p.gold) for p in problems] == [("a, b", "2")]


def test_one_question_has_one_answer(tmp_path):
    folder = image_folder(tmp_path)
    row = SOUND | {"image": "0.png"}
    rows = [
        row,
        row | {"answer": " 3 "},
        row | {"answer": "4"},
        row | {"image": "1.png", "answer": "4"},
        row | {"question": "How few?", "answer": "4"},
        row | {"choices": ["3", "4"], "answer": "B"},
    ]
    problems, quarantine = read(write_rows(folder / "a.jsonl", rows), fields={"id": ""})
    assert [p.id for p in problems] == ["a/1", "a/2", "a/4", "a/5", "a/6"]
    assert reasons(quarantine) == [(3, "answer", "conflicting gold")]


def test_demonstrations_of_one_question_may_differ(tmp_path):
    rows = [SOUND | {"response": "a", "id": "1"}, SOUND | {"response": "b", "answer": "4", "id": "2"}]
    problems, _ = read(write_rows(tmp_path / "a.jsonl", rows), responses=True, golds=False)
    assert [p.response for p in problems] == ["a", "b"]


def test_a_row_too_long_and_full_of_braces_is_one_flaw(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1 << 16)
    monkeypatch.setattr(json_rows, "_CHUNK", 1 << 12)
    monkeypatch.setattr(json_rows, "_AHEAD", 1 << 14)
    good = b'{"question": "q%d", "answer": "1"}'
    long = b'{"question": "' + b"x^{{}" * 60_000 + b'", "answer": "1"}'
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join([good % 1, long, good % 2]) + b"]")
    problems, quarantine = read(tmp_path / "a.json")
    assert [p.question for p in problems][:1] == ["q1"]
    assert 1 <= quarantine.total <= 2


def scans(count: int) -> bytes:
    """A progressive JPEG file whose last scan is there `count` times more."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 100).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused_by_its_header(tmp_path):
    assert decode(scans(20), ImageLimits()).size == (64, 64)
    for read_it in (image_size, decode):
        with pytest.raises(ImageError, match=f"more than {MOST_SCANS} scans"):
            read_it(scans(MOST_SCANS), ImageLimits())


def test_bytes_that_look_like_scans_are_none():
    file = io.BytesIO()
    Image.new("L", (64, 64), 100).save(file, "JPEG", comment=b"\xff\xda" * 1000)
    assert decode(file.getvalue() + b"\xff\xda" * 1000, ImageLimits()).size == (64, 64)


def test_the_header_of_a_png_is_read_without_its_pixels():
    data = png()
    at = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, at - 4)
    rotten = b"IDAT" + bytes(length)
    rotten = data[:at] + rotten + struct.pack(">I", zlib.crc32(rotten)) + data[at + length + 8 :]
    loaded = []
    before = PngImagePlugin.PngImageFile.load_end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loaded.append(self) or before(self))
        assert image_size(rotten, ImageLimits()) == (12, 8)
    assert not loaded


def test_an_orientation_behind_the_pixels_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = png()
    for at in (data.rindex(b"IEND") - 4, data.index(b"IDAT") - 4):
        turned = data[:at] + chunk + data[at:]
        assert image_size(turned, ImageLimits()) == decode(turned, ImageLimits()).size == (8, 12)


def test_images_of_rows_need_a_folder_to_be_kept_in(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    rows = [SOUND | {"image": {"bytes": png()}}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"cannot be kept in .*data\.cache_dir"):
        read(tmp_path / "a.parquet")


def test_decimals_are_refused_in_words(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": pa.array([Decimal("1.50")])}), tmp_path / "a.parquet")
    _, quarantine = read(tmp_path / "a.parquet")
    assert reasons(quarantine) == [(1, "answer", "bad gold")]
