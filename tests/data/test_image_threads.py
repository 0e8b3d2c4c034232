"""Images looked at in threads: what one thread finds, in the same order, within bounds on memory."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from rows import image_folder, png, write_rows

from mstar_engine.data import image_files, images
from mstar_engine.data import reader as reading
from mstar_engine.data.image_files import ImageFiles
from mstar_engine.data.images import DECODED, ImageLimits
from mstar_engine.data.pixel_room import PixelRoom
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import Source, read_problems

BAD = ["missing.png", "https://a.b/c.png", "../0.png", "cut.png", 7, "large.png", "data:image/png;base64,!!", ""]


def found(path, threads, form="rows", limits=None, **said):
    quarantine = Quarantine()
    limits = limits or ImageLimits(pixels=200)
    # Nothing is noted from one reading to the next.
    files = ImageFiles(path.parent, path.parent / f"cache{threads}" / "kept", limits, threads=threads)
    problems = list(read_problems(Source(path=str(path), form=form, **said), files, quarantine))
    kept = [(p.id, p.gold, [(i.name, i.read_bytes()) for i in p.images]) for p in problems]
    return kept, list(map(str, quarantine.listed)), quarantine.rows, quarantine.repeated


@pytest.fixture
def folder(tmp_path):
    image_folder(tmp_path, 6)
    (tmp_path / "cut.png").write_bytes(png(7)[:-30])
    (tmp_path / "large.png").write_bytes(png(8, (40, 40)))
    return tmp_path


def test_threads_find_what_one_finds_in_its_order(folder):
    rows = []
    for i in range(120):
        images = [BAD[i % len(BAD)], f"{i % 6}.png"] if i % 5 == 0 else [f"{i % 6}.png"]
        images = ["cut.png", BAD[i % len(BAD)]] if i % 7 == 0 else images  # the first image's flaw is the row's
        images = (
            [base64.b64encode(png(100 + i % 9)).decode().join(["data:image/png;base64,", ""])]
            if i % 11 == 0
            else images
        )
        rows.append({"id": str(i % 100), "question": f"{i}?", "answer": str(i) if i % 13 else None, "image": images})
    path = write_rows(folder / "a.jsonl", rows)
    one = found(path, 1)
    assert len(one[0]) > 40 and len(one[1]) > 30
    assert found(path, 4) == one and found(path, 2) == one


def test_rows_that_borrow_an_image_borrow_it_from_threads_too(folder):
    flawed = base64.b64encode(png(1)[:-30]).decode()
    sound = base64.b64encode(png(2)).decode()
    given = [sound, "0", flawed, "2", "9", "0"]
    rows = [
        {
            "index": i,
            "question": f"{i}?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "image": image,
            "l2-category": "logic_reasoning",
        }
        for i, image in enumerate(given)
    ]
    path = write_rows(folder / "a.jsonl", rows)
    one = found(path, 1, "mmbench")
    assert found(path, 3, "mmbench") == one
    assert [name for name, *_ in one[0]] == ["a/0", "a/1", "a/5"]
    assert ["which has the image, is not before this one" in line for line in one[1]] == [False, True, True]


def test_an_image_of_many_rows_is_decoded_once(folder):
    path = write_rows(
        folder / "a.jsonl", [{"id": i, "question": f"{i}?", "answer": "1", "image": f"{i % 6}.png"} for i in range(90)]
    )
    before = DECODED.images
    found(path, 8)
    assert DECODED.images == before + 6


def test_an_early_end_ends_the_threads_and_asks_again_later(folder):
    path = write_rows(
        folder / "a.jsonl", [{"id": i, "question": f"{i}?", "answer": "1", "image": f"{i % 6}.png"} for i in range(90)]
    )
    files = ImageFiles(folder, folder / "cache" / "kept", ImageLimits(), threads=3)
    problems = read_problems(Source(path=str(path)), files, Quarantine())
    assert len(list(islice(problems, 2))) == 2
    problems.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("images")]
    assert len(list(read_problems(Source(path=str(path)), files, Quarantine()))) == 90


def test_decoded_pixels_in_flight_are_bounded(folder, monkeypatch):
    """Four threads and room for two images: a third is never decoded at the same time."""
    at_once, most, lock, two = 0, 0, threading.Lock(), threading.Barrier(2, timeout=60)
    ours = images._decoded

    def counted(image, data, wanted=True):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            two.wait()  # goes on only when there are two
            return ours(image, data, wanted)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(images, "_decoded", counted)
    path = write_rows(
        folder / "a.jsonl", [{"id": i, "question": f"{i}?", "answer": "1", "image": f"{i}.png"} for i in range(6)]
    )
    assert len(found(path, 4, limits=ImageLimits(pixels=2 * 12 * 8 + 90))[0]) == 6
    assert most == 2


def test_a_larger_image_has_the_room_for_itself():
    room, inside = PixelRoom(10), []

    def take(pixels):
        with room.of(pixels):
            inside.append(room.taken)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, [3, 25, 4, 10, 1, 25] * 20))
    assert max(inside) == 25 and all(taken in (25, *range(11)) for taken in inside) and room.taken == 0


def test_bytes_that_wait_are_bounded(folder, monkeypatch):
    """A row's image waits for its look; beyond the limit the reading waits instead."""
    waiting = []
    ours = image_files.ImageFiles._submitted

    def submitted(self, size, look):
        future = ours(self, size, look)
        waiting.append(self.waiting)
        return future

    monkeypatch.setattr(image_files.ImageFiles, "_submitted", submitted)
    data = [base64.b64encode(png(i)).decode() for i in range(40)]
    monkeypatch.setattr(reading, "_BYTES_AHEAD", 2 * len(png(0)))
    path = write_rows(
        folder / "a.jsonl",
        [
            {"id": i, "question": f"{i}?", "answer": "1", "image": f"data:image/png;base64,{one}"}
            for i, one in enumerate(data)
        ],
    )
    assert len(found(path, 8)[0]) == 40
    assert len(waiting) == 40 and max(waiting) <= 3 * max(len(png(i)) for i in range(40))
