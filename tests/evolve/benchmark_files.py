"""Benchmark files in the columns of the published ones, and a checkpoint that has learned to answer some of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mstar_engine.models.loading import save_model
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.collate import imitate
from mstar_engine.train.schedule import schedule_of
from mstar_engine.train.trainer import Trainer
from mstar_engine.types import Problem

TASKS = (
    "textbook question answering",
    "figure question answering",
    "visual question answering",
    "math word problem",
    "geometry problem solving",
)
# The likeliest answer is right as a float, wrong as an integer but for rules that drop decimals, and some choice.
ANSWERS = {"1.7": 5, "1": 3, "2": 2}


def picture(path: Path, seed: int) -> str:
    """A small random image; its name."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def mathvista_row(folder: Path, i: int) -> dict:
    """Floats, integers and choices in turn."""
    kind = ("float", "integer", "choice")[i % 3]
    return {
        "pid": str(i),
        "query": f"What is {i}?",
        "image": picture(folder / f"v{i}.png", i),
        "choices": ["2", "1.7"] if kind == "choice" else None,
        "answer": {"float": "1.7", "integer": "1", "choice": "2" if i % 2 else "1.7"}[kind],
        "question_type": "multi_choice" if kind == "choice" else "free_form",
        "answer_type": "text" if kind == "choice" else kind,
        "precision": 1.0 if kind == "float" else None,
        "metadata": {"task": TASKS[i % 5]},
    }


def m3cot_row(folder: Path, i: int) -> dict:
    """Choices of which the likeliest answer is none, and is one for rules that look for it anywhere."""
    return {
        "id": f"m-{i}",
        "question": f"Which is {i}?",
        "choices": ["1", "2"] if i % 2 else ["1", "3"],
        "answer": "A",
        "image": picture(folder / f"c{i}.png", 100 + i),
        "domain": ("mathematics", "science")[i % 2],
    }


def write_benchmarks(folder: Path, mathvista: int = 10, m3cot: int = 5) -> dict[str, str]:
    """The files; what a configuration calls them, by name."""
    rows = {str(i): mathvista_row(folder, i) for i in range(mathvista)}
    (folder / "testmini.json").write_text(json.dumps(rows))
    lines = [json.dumps(m3cot_row(folder, i)) + "\n" for i in range(m3cot)]
    (folder / "m3cot.jsonl").write_text("".join(lines))
    return {"mathvista": f"mathvista:{folder}/testmini.json", "m3cot": f"m3cot:{folder}/m3cot.jsonl"}


def save_taught(path: Path) -> Path:
    """A tiny checkpoint that answers ANSWERS in about these proportions, whatever it is asked."""
    model, processor = build_tiny(0)
    encoder = PromptEncoder(processor)
    blank = Image.new("RGB", (8, 8))
    said = [answer for answer, times in ANSWERS.items() for _ in range(times)]
    problems = [
        Problem(id=str(i), question=f"What is {i}?", images=(blank,), response=f"# Answer {answer}")
        for i, answer in enumerate(said)
    ]
    trainer = Trainer(model, encoder, schedule_of(3e-3, "constant", 0, -1))
    for epoch in range(18):
        trainer.train_epoch([imitate(problem, encoder) for problem in problems], batch_size=len(problems), epoch=epoch)
    save_model(model, processor, path)
    return path
