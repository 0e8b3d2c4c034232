"""Which rollouts the report shows: a few problems, each with the responses that tell the most.

Problems are chosen by their outcomes alone; texts are read for the chosen ones only, so that a large run does not have
to fit into memory. The choice is a function of the files: reporting twice shows the same.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from mstar_engine.run_directory import report_image_path

_COLUMNS = ["iteration", "problem_id", "source", "question", "gold", "sample", "text", "answer", "correct", "selected"]
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response, and how many samples gave just this text."""

    text: str
    answer: str | None
    correct: bool | None
    selected: bool
    times: int


@dataclass(frozen=True, slots=True)
class ShownProblem:
    """A problem with its image (a data URI, None when the run kept none) and some of its responses."""

    id: str
    iteration: int
    source: str
    question: str
    gold: str | None
    image: str | None
    responses: tuple[ShownResponse, ...]
    samples: int
    correct: int
    hidden: int


def read_samples(run: Path, problems: int = 6, responses: int = 3) -> list[ShownProblem]:
    """Up to `problems` problems of the newest iteration, those with images and with right and wrong responses first."""
    files = sorted((run / "rollouts").glob("iteration_*.parquet"))
    if not files:
        return []
    ids = _choose(run, files[-1], problems)
    rows = pq.read_table(files[-1], columns=_COLUMNS, filters=[("problem_id", "in", ids)]).to_pylist() if ids else []
    return [_shown(run, [row for row in rows if row["problem_id"] == name], responses) for name in ids]


def _choose(run: Path, file: Path, wanted: int) -> list[str]:
    """The ids of the problems to show: the best of each source, then the second of each, until there are enough."""
    outcomes = pq.read_table(file, columns=["problem_id", "source", "sample", "correct"])
    totals = (
        outcomes.group_by(["problem_id", "source"]).aggregate([("sample", "count"), ("correct", "sum")]).to_pylist()
    )
    images = {path.name for path in (run / "report_images").glob("*.png")}

    def interest(row: dict) -> tuple[bool, int, bytes]:
        right = row["correct_sum"] or 0
        outcome = 0 if 0 < right < row["sample_count"] else 1 if right else 2
        name = row["problem_id"]
        return (report_image_path(run, name).name not in images, outcome, hashlib.sha256(name.encode()).digest())

    turns: dict[str, int] = {}
    keyed = []
    for rank, row in enumerate(sorted(totals, key=interest)):
        turns[row["source"]] = turns.get(row["source"], -1) + 1
        keyed.append((turns[row["source"]], rank, row["problem_id"]))
    return [name for _, _, name in sorted(keyed)[:wanted]]


def _shown(run: Path, rows: list[dict], limit: int) -> ShownProblem:
    texts: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        texts.setdefault(row["text"], []).append(row)
    distinct = [
        ShownResponse(
            text=text,
            answer=same[0]["answer"],
            correct=same[0]["correct"],
            selected=any(row["selected"] for row in same),
            times=len(same),
        )
        for text, same in texts.items()
    ]
    # Selected first, then right, then wrong; the last place is the commonest wrong one's, so that both sides are seen.
    distinct.sort(key=lambda r: (not r.selected, r.correct is not True, -r.times))
    wrong = next((r for r in distinct if r.correct is False), None)
    shown = distinct[:limit]
    if wrong is not None and wrong not in shown:
        shown[-1] = wrong
    first = rows[0]
    return ShownProblem(
        id=first["problem_id"],
        iteration=first["iteration"],
        source=first["source"],
        question=first["question"],
        gold=first["gold"],
        image=_image(report_image_path(run, first["problem_id"])),
        responses=tuple(shown),
        samples=len(rows),
        correct=sum(row["correct"] is True for row in rows),
        hidden=len(distinct) - len(shown),
    )


def _image(path: Path) -> str | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data.startswith(_PNG) else None
