"""Reading a data set of MathV360K's size, the second pass over its prompts, and the memory of many passes.

The rows are made up in MathV360K's shape (338,721 conversations over 40,000 images); nothing is downloaded. Each side
of the reading runs in a process of its own, so that its peak memory is its own. Ours checks every row and finds every
image; the peers only parse.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Row, main, make_row
from mstar_engine.data.images import DECODED
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

ROWS, IMAGES = 338_721, 40_000
_HINTS = (
    ("Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.", "choice"),
    ("Please answer the question requiring an integer answer and provide the final value.", "integer"),
    ("Please answer the question requiring a floating-point number with two decimal places.", "float"),
)
_WORDS = ("angle", "bar", "base", "blue", "chart", "circle", "count", "figure", "graph", "height", "length", "line")
OURS = """
import sys
from pathlib import Path
from mstar_engine.data.image_files import ImageFiles
from mstar_engine.data.images import ImageLimits
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import Source, read_problems
path, quarantine = Path(sys.argv[1]), Quarantine()
images = ImageFiles(path.parent, Path(sys.argv[3]) / "kept", ImageLimits(), sys.argv[2])
kept = list(read_problems(Source(path=str(path), form="mathv360k"), images, quarantine))
assert len(kept) == quarantine.rows, quarantine.in_words()
"""
JSON_LOAD = "import json, sys; kept = list(json.load(open(sys.argv[1], encoding='utf-8')))"
DATASETS = """
import sys, datasets
datasets.disable_progress_bars()
kept = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[1] + ".cache")
"""
# getrusage would tell the peak of the process that this one was forked from.
_PEAK = "\nprint(len(kept), *(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def write_mathv360k(path: Path, rows: int, images: int) -> None:
    """A JSON array of made-up conversations, and their images beside it (all of a few kinds of content)."""
    rng = random.Random(0)
    pictures = path.parent / "images"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for i in range(images):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n")
        for i in range(rows):
            hint, kind = rng.choice(_HINTS)
            words = " ".join(rng.choices(_WORDS, k=40))
            choices = "\nChoices:\n(A) 12\n(B) 15 cm\n(C) 18\n(D) 24" if kind == "choice" else ""
            gold = {"choice": rng.choice("ABCD"), "integer": str(rng.randrange(999)), "float": f"{rng.random():.2f}"}[
                kind
            ]
            asked = f"<image>\nHint: {hint}\nQuestion: {words}, number {i}?{choices}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"The answer is {gold}"}]
            row = {"id": f"identity_{i}", "image": f"images/{rng.randrange(images)}.png", "conversations": turns}
            file.write(json.dumps(row) + (",\n" if i + 1 < rows else "\n]\n"))


def read_apart(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak bytes of a reading in a process of its own; its imports are in neither."""
    begin = "import time; begin = time.perf_counter()\n"
    last = "\nprint(time.perf_counter() - begin)"
    head, _, body = code.strip().rpartition("\npath, quarantine") if "quarantine" in code else ("", "", code)
    code = f"{head}\n{begin}path, quarantine{body}" if head else begin + body
    done = subprocess.run(
        [sys.executable, "-c", code + last + _PEAK, *arguments], capture_output=True, text=True, check=True
    )
    seconds, told = done.stdout.split("\n")[:2]
    return float(seconds), 1024 * float(told.split()[1])


def reading(quick: bool) -> Iterator[Row]:
    """Seconds and peak memory of reading the rows."""
    rows, images = (20_000, 2_000) if quick else (ROWS, IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        write_mathv360k(path, rows, images)
        # Each time all images are looked at anew.
        times = range(1 if quick else 3)
        ours = [read_apart(OURS, str(path), "decode", f"{folder}/cache{turn}") for turn in times]
        sides = {"json.load": JSON_LOAD}
        try:
            import datasets  # noqa: F401

            sides["datasets"] = DATASETS
        except ImportError:
            print("datasets is not installed: skipped")
        for name, code in sides.items():
            theirs = [read_apart(code, str(path)) for _ in times]
            mine, other = (sorted(side)[len(side) // 2] for side in (ours, theirs))
            size = f"{rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB of JSON"
            what = "ours, rows and images checked"
            yield make_row(size, what, f"{name}, parsed only", mine[0], other[0], "s", other[0] / mine[0])
            peaks = [max(peak for _, peak in side) / 2**20 for side in (ours, theirs)]
            yield make_row(size, what, f"{name}, parsed only", *peaks, "MiB", peaks[1] / peaks[0])


def second_pass(quick: bool) -> Iterator[Row]:
    """Milliseconds a prompt in the first and in later passes over images of 1024 x 768, by a CLIP-sized processor."""
    count = 8 if quick else 64
    processor = build_tiny()[1]
    processor.image_processor.size = processor.image_processor.crop_size = {"height": 336, "width": 336}
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        problems = []
        for i in range(count):
            coarse = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(Path(folder) / f"{i}.jpg", quality=90)
            question = " ".join(_WORDS * 4)
            os.utime(Path(folder) / f"{i}.jpg", (0, 0))  # a file that may still be written to is read each time
            problems.append(Problem(id=str(i), question=question, images=(Path(folder) / f"{i}.jpg",)))
        encoders = {
            "without a cache": PromptEncoder(processor, cache_bytes=0),
            "first pass": PromptEncoder(processor, cache_bytes=0, images=TensorCache(Path(folder) / "cache", 1 << 36)),
        }
        encoders["second pass"] = encoders["third pass"] = encoders["first pass"]
        took, decoded = {}, {}
        for name, encoder in encoders.items():
            took[name], decoded[name] = _pass(encoder, problems)
        another = PromptEncoder(processor, cache_bytes=0, images=TensorCache(Path(folder) / "cache", 1 << 36))
        took["another run's first pass"], decoded["another run's first pass"] = _pass(another, problems)
        assert list(decoded.values()) == [count, count, 0, 0, 0]
        for name in ("second pass", "third pass", "another run's first pass"):
            first, later = took["first pass"], took[name]
            subject = f"prompt with a 1024x768 image, {100 * later / first:.2f}% of the first pass"
            yield make_row(subject, name, "first pass", later, first, "ms", first / later)


def _pass(encoder: PromptEncoder, problems: list[Problem]) -> tuple[float, int]:
    """Milliseconds a prompt, and images decoded."""
    before, begin = DECODED.images, time.perf_counter()
    for problem in problems:
        encoder.encode(problem)
    return 1000 * (time.perf_counter() - begin) / len(problems), DECODED.images - before


def memory(quick: bool) -> Iterator[Row]:
    """Memory after 1,000, 10,000 and 100,000 prompts of few images, and of the problems themselves."""
    marks, images = ((200, 1_000, 2_000), 50) if quick else ((1_000, 10_000, 100_000), 500)
    count = marks[-1]
    processor = build_tiny()[1]
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0)
        for i in range(images):
            Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(Path(folder) / f"{i}.png")
        paths = [Path(folder) / f"{i}.png" for i in range(images)]
        for path in paths:
            os.utime(path, (0, 0))
        before = resident()["RssAnon"]
        problems = [
            Problem(id=f"row_{i}", question=f"What {i % 7} " + " ".join(_WORDS * 4), images=(paths[i % images],))
            for i in range(count)
        ]
        size = 2**20 * (resident()["RssAnon"] - before) / count
        encoder = PromptEncoder(processor, cache_bytes=16 << 20, images=TensorCache(Path(folder) / "cache", 1 << 36))
        decoded, seen = DECODED.images, {}
        for i, problem in enumerate(problems, 1):
            encoder.encode(problem)
            if i in marks:
                seen[i] = resident()
        assert DECODED.images - decoded == images
        for kind, name in (("RssAnon", "private memory"), ("RssFile", "memory of mapped files")):
            for mark in marks[1:]:
                now, early = seen[mark][kind], seen[marks[0]][kind]
                subject = f"{name}, prompts of {images} images"
                yield make_row(subject, f"after {mark:,}", f"after {marks[0]:,}", now, early, "MiB", early / now)
        question = sys.getsizeof(problems[0].question)
        yield make_row(f"a problem, of {count:,}", "in all", "its question", size, question, "bytes", question / size)


def resident() -> dict[str, float]:
    """Resident memory of this process by kind, MiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[0].startswith("Rss")}


def rows(quick: bool) -> Iterator[Row]:
    """Every row of this benchmark."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    yield from reading(quick)
    yield from second_pass(quick)
    yield from memory(quick)


if __name__ == "__main__":
    main("data_reading", rows)
