"""Readers under mutated rows and images: no crash, no hang, nothing accepted that is not sound, no sound row lost.

Everything is drawn from fixed seeds. A mutated row either becomes a problem that is sound by a check that shares no
code with the reader, or is in the quarantine; every other row comes out as it does from the undamaged file.
"""

import io
import json
import math
import random
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rows import image_folder, picture, read, write_rows

from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import FORMATS, ImageLimits, decode, image_size
from mstar_engine.types import Problem

HINT = "<image>\nHint: Please answer the question requiring an integer answer.\nQuestion: How many, {é}?"
LETTER = '<image>\nHint: Provide the correct option letter.\nQuestion: Which?\nChoices:\n(A) red\n(B) a }, {\n(C) \\"x'


def rows_of(form: str, count: int) -> list[dict]:
    """Sound rows of a format, no two alike."""
    rows = []
    for i in range(count):
        image, answer = f"{i % 4}.png", str(i)
        if form == "rows":
            rows.append(
                {"id": f"r{i}", "question": f"{i}?", "image": image, "answer": answer, "answer_type": "integer"}
            )
        elif form == "mathv360k":
            asked, said = (HINT, f"The answer is {i}.") if i % 2 else (LETTER, "The answer is B")
            turns = [{"from": "human", "value": f"{asked} {i}"}, {"from": "gpt", "value": said}]
            rows.append({"id": f"r{i}", "image": image, "conversations": turns})
        elif form == "mathvista":
            choices = ["1", "two", "3.5"] if i % 2 else None
            kind = {"question_type": "multi_choice" if choices else "free_form", "answer_type": "float"}
            meta = {"task": "math word problem", "split": "testmini"}
            gold = "two" if choices else f"{i}.5"
            said = {"pid": f"r{i}", "query": f"{i}?", "image": image, "decoded_image": None, "answer": gold}
            rows.append({**said, "choices": choices, "precision": 1.0, "unit": None, **kind, "metadata": meta})
        else:
            meta = {"index": i, "question": f"{i}?", "answer": "B", "l2-category": "logic_reasoning", "hint": None}
            data = (Path(__file__).parent / "none").name
            rows.append({**meta, "A": "x", "B": "y", "C": data, "image": None})
    return rows


HOSTILE = [
    None, "", " ", "\0", "\ud800", "NaN", "null", "<image>", "<image><image>", "<|image_pad|>", "../0.png", "/dev/zero",
    "http://a/b.png", "data:image/png;base64,", "data:image/png;base64,AAAA", "\u202e\u200b", "x" * 10_000, "Z", "(B",
    0, -1, 1, 10**400, 2**63, 0.5, math.nan, math.inf, True, False, [], {}, [None], [[]], [[[]]], {"a": {"b": []}},
    {"bytes": None, "path": None}, {"bytes": "0.png", "path": "0.png"}, ["0.png", "1.png"], ["A"] * 40, {"B": "x"},
    [{"from": "gpt", "value": "1"}], [{"from": "human"}, {"from": "gpt"}], [{"from": "human", "value": None}], [7],
]  # fmt: skip


def hostile_row(rng: random.Random, row: dict) -> dict:
    """The row with one value, at any depth, replaced, gone, or under another name."""
    row = json.loads(json.dumps(row))
    here = row
    while True:
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        if isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.7:
            here = here[key]
            continue
        what = rng.randrange(6)
        if what == 0:
            del here[key]
        elif what == 1 and isinstance(here, dict):
            here[f"{key}s"] = here.pop(key)
        else:
            here[key] = rng.choice(HOSTILE)
        return row


def mutated(rng: random.Random, text: bytes) -> bytes:
    """The text with a few bytes flipped, replaced, gone, repeated or added."""
    data = bytearray(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 40))
        what = rng.randrange(5)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + length] = rng.choice(
                (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\xff", b"\0", b"NaN", b"9" * 99)
            )
        elif what == 2 and len(data) > length + 1:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(length))
    return bytes(data)


def assert_sound(problem: Problem, folder: Path) -> None:
    """What a run may rely on, whatever the row said."""
    assert problem.id and problem.question.strip() and problem.gold.strip()
    for text in (problem.id, problem.question, problem.gold, problem.source):
        assert "\0" not in text and text.encode("utf-8")
    assert not re.search(r"<image>|<\|image", problem.question)
    assert problem.gold.casefold() not in ("nan", "null", "none", "inf")
    kind = problem.answer_type and problem.answer_type.kind
    if kind == "choice":
        assert problem.gold in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(problem.answer_type.choices) or 26]
    if kind == "integer":
        assert float(problem.gold.replace(",", "")).is_integer()
    if kind == "float":
        assert math.isfinite(float(problem.gold.replace(",", "").split("/")[0]))
    for image in problem.images:
        assert image.resolve().is_relative_to(folder.resolve())
        with Image.open(image) as opened:
            opened.convert("RGB")


def by_content(problems: list[Problem]) -> dict[str, Problem]:
    return {problem.id: problem for problem in problems}


@pytest.mark.parametrize("form", ["rows", "mathv360k", "mathvista", "mmbench"])
def test_hostile_values(tmp_path, form):
    rng, folder = random.Random(f"values/{form}"), image_folder(tmp_path)
    sound = rows_of(form, 40)
    wanted = by_content(read(write_rows(folder / "a.jsonl", sound), form=form)[0])
    assert len(wanted) == 40
    for _ in range(40):
        bad = set(rng.sample(range(40), 30))
        rows = [hostile_row(rng, row) if i in bad else row for i, row in enumerate(sound)]
        problems, quarantine = read(write_rows(folder / "a.jsonl", rows), form=form)
        assert quarantine.rows == 40 == len(problems) + quarantine.total + quarantine.repeated + quarantine.left_out
        found = by_content(problems)
        assert len(found) == len(problems)
        for problem in problems:
            assert_sound(problem, folder)
        stolen = {one.id for one in quarantine.listed if one.reason.startswith("conflicting")}
        for i, problem in enumerate(wanted.values()):
            name = problem.id.partition("/")[2]
            assert i in bad or found.get(problem.id) == problem or name in stolen


@pytest.mark.parametrize("form", ["rows", "mathv360k", "mathvista"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_mutated_text(tmp_path, form, ending):
    rng, folder = random.Random(f"text/{form}/{ending}"), image_folder(tmp_path)
    sound = rows_of(form, 24)
    path = write_rows(folder / f"a.{ending}", sound)
    wanted = by_content(read(path, form=form)[0])
    texts = [json.dumps(row, ensure_ascii=False).encode() for row in sound]
    longest = 0.0
    for _ in range(115):
        bad = set(rng.sample(range(24), 8))
        parts = [mutated(rng, text) if i in bad else text for i, text in enumerate(texts)]
        parts = [part.replace(b"\n", b" ") for part in parts]  # a line stays a line
        path.write_bytes(b"[" + b", ".join(parts) + b"]" if ending == "json" else b"\n".join(parts) + b"\n")
        begin = time.perf_counter()
        problems, quarantine = read(path, form=form)
        longest = max(longest, time.perf_counter() - begin)
        found = by_content(problems)
        assert len(problems) + quarantine.total + quarantine.repeated + quarantine.left_out == quarantine.rows
        for problem in problems:
            assert_sound(problem, folder)
        stolen = {one.id for one in quarantine.listed if one.reason.startswith("conflicting")}
        lost = [i for i, p in enumerate(wanted.values()) if i not in bad and found.get(p.id) != p]
        # A mutated id or question may be another row's, which comes first or second.
        lost = [i for i in lost if f"r{i}" not in stolen]
        assert not lost, (lost, sorted(bad), path.read_bytes())
        # Damage that spans neighbours is told once.
        neighbours = sum(i - 1 in bad for i in bad)
        assert quarantine.rows >= 24 - neighbours - sum(not part.strip() for part in parts)
    assert longest < 10


def test_files_cut_anywhere(tmp_path):
    rng, folder = random.Random("cut"), image_folder(tmp_path)
    rows = rows_of("mathv360k", 20)
    for ending in ("json", "jsonl"):
        path = write_rows(folder / f"a.{ending}", rows)
        text = path.read_bytes()
        for _ in range(150):
            path.write_bytes(text[: rng.randrange(1, len(text))])
            problems, quarantine = read(path, form="mathv360k")
            assert [p.id for p in problems] == [f"a/r{i}" for i in range(len(problems))]
            # All before the cut is read, and the cut is told unless it is between two lines.
            assert quarantine.total or ending == "jsonl" or path.read_bytes().strip() == b"["


def test_text_made_to_cost_time(tmp_path):
    for text in (
        b"[" + b"{" * 300_000,
        b"[" + b'{"a":' * 100_000,
        b"[" + b"[" * 300_000,
        b'[{"a": "' + b"},{" * 50_000,
        b'[{"a":1},' + b'{"a"},' * 200_000,
    ):
        (tmp_path / "a.json").write_bytes(text)
        begin = time.perf_counter()
        problems, quarantine = read(tmp_path / "a.json")
        assert time.perf_counter() - begin < 30 and not problems and quarantine.total


def test_mutated_parquet(tmp_path):
    rng, folder = random.Random("parquet"), image_folder(tmp_path)
    path = folder / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of("rows", 20)), path, row_group_size=5, write_page_checksum=True)
    data = path.read_bytes()
    refused = 0
    for _ in range(400):
        path.write_bytes(mutated(rng, data))
        try:
            problems, quarantine = read(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        for problem in problems:
            assert_sound(problem, folder)
        assert len(problems) + quarantine.total + quarantine.repeated == quarantine.rows
    assert refused < 400


def saved(format: str, rng: random.Random) -> bytes:
    mode = rng.choice(
        {"PNG": ["RGB", "RGBA", "L", "P", "1"], "GIF": ["P"], "JPEG": ["RGB", "L", "CMYK"]}.get(format, ["RGB"])
    )
    image = picture(rng.randrange(99), (rng.randrange(1, 50), rng.randrange(1, 50))).convert(mode)
    file = io.BytesIO()
    options = {"progressive": rng.random() < 0.5} if format == "JPEG" else {}
    image.save(file, format=format, **options)
    return file.getvalue()


def lying(rng: random.Random, format: str, data: bytes) -> bytes:
    """The file with a wrong number somewhere in its first bytes, checksums put right."""
    changed = bytearray(data)
    if format == "PNG":
        at = rng.choice((16, 20))
        struct.pack_into(">I", changed, at, rng.choice((0, 1, 51, 200, 9_999, 2**31 - 1, 2**32 - 1)))
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    else:
        at = rng.randrange(2, min(60, len(data) - 4))
        struct.pack_into("<H", changed, at, rng.choice((0, 1, 255, 9_999, 65_535)))
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", FORMATS)
def test_mutated_images(format):
    rng, limits = random.Random(f"images/{format}"), ImageLimits(bytes=1 << 20, pixels=1_000_000)
    outcomes = {"refused": 0, "shown": 0}
    for _ in range(320):
        data = saved(format, rng)
        wanted = np.asarray(decode(data, limits))
        what = rng.randrange(4)
        if what == 0:
            changed = data[: rng.randrange(len(data))]
        elif what == 1:
            changed = lying(rng, format, data)
        elif what == 2:
            changed = mutated(rng, data)
        else:
            changed = data + bytes(rng.randrange(256) for _ in range(rng.choice((1, 100))))
        begin = time.perf_counter()
        try:
            image = decode(changed, limits)
        except ImageError:
            outcomes["refused"] += 1
        else:
            outcomes["shown"] += 1
            assert image.mode == "RGB" and image.size == image_size(changed, limits)
            assert 0 < image.width * image.height <= limits.pixels
            if format == "PNG" and what in (0, 2):
                same = wanted.shape == np.asarray(image).shape and (np.asarray(image) == wanted).all()
                assert same or changed[8:33] != data[8:33] or changed[33:41] != data[33:41]
            if what == 0:  # what is cut off was not needed
                np.testing.assert_array_equal(np.asarray(image), wanted)
        assert time.perf_counter() - begin < 10
    assert min(outcomes.values()) > 20, outcomes
