"""Which rollouts the report shows: a few problems, each with the responses that tell the most.

Problems are chosen by their outcomes alone; texts are read for the chosen ones only, so that a large run does not have
to fit into memory. The choice is a function of the files: reporting twice shows the same.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mstar_engine.report.steps import ShownStep, shown_steps
from mstar_engine.rollout_file import ADDED
from mstar_engine.run_directory import report_image_path

_OUTCOMES = ["problem_id", "source", "sample", "correct", "selected", "step_scores"]
_COLUMNS = [*_OUTCOMES, "iteration", "question", "gold", "text", "answer", "score", *ADDED]
# A step that scores below this is more likely wrong than right.
_WEAK = 0.5
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response, and how many samples gave just this text; `steps` is empty when it is to be shown whole,
    `weakest` the lowest step score."""

    text: str
    answer: str | None
    correct: bool | None
    selected: bool
    times: int
    score: float | None = None
    steps: tuple[ShownStep, ...] = ()
    weakest: float | None = None

    @property
    def lucky(self) -> bool:
        """Right and not selected, with a weak step: the answer may be luck."""
        return self.correct is True and not self.selected and self.weakest is not None and self.weakest < _WEAK


@dataclass(frozen=True, slots=True)
class ShownProblem:
    """A problem with its image (a data URI, None when the run kept none) and some of its responses.

    `label` and `truth` as in `types.Problem`: beside a pseudo-label, `truth` is the true answer where it is known.
    """

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
    label: str = "gold"
    truth: str | None = None


def read_samples(
    run: Path, problems: int = 6, responses: int = 3, *, delimiter: str = "\n\n", max_steps: int = 0
) -> list[ShownProblem]:
    """Up to `problems` problems of the newest iteration, with at most `responses` (2 or more) of each.

    Those with images come first, then those with right and wrong responses, then those with a lucky one. `delimiter`
    and `max_steps` are those by which steps were scored.
    """
    files = sorted((run / "rollouts").glob("iteration_*.parquet"))
    if not files:
        return []
    ids = _choose(run, files[-1], problems)
    columns = [name for name in _COLUMNS if name in pq.read_schema(files[-1]).names]
    rows = pq.read_table(files[-1], columns=columns, filters=[("problem_id", "in", ids)]).to_pylist() if ids else []
    groups = [[row for row in rows if row["problem_id"] == name] for name in ids]
    return [_shown(run, group, _distinct(group, delimiter, max_steps), responses) for group in groups]


def _choose(run: Path, file: Path, wanted: int) -> list[str]:
    """The ids of the problems to show: the best of each source, then the second of each, until there are enough."""
    outcomes = pq.read_table(file, columns=_OUTCOMES)
    sums = [("sample", "count"), ("correct", "sum"), ("lucky", "max")]
    totals = (
        outcomes.append_column("lucky", _lucky(outcomes)).group_by(["problem_id", "source"]).aggregate(sums).to_pylist()
    )
    images = {path.name for path in (run / "report_images").glob("*.png")}

    def interest(row: dict) -> tuple[bool, int, bool, bytes]:
        right = row["correct_sum"] or 0
        outcome = 0 if 0 < right < row["sample_count"] else 1 if right else 2
        name = row["problem_id"]
        bare = report_image_path(run, name).name not in images
        return (bare, outcome, not row["lucky_max"], hashlib.sha256(name.encode()).digest())

    turns: dict[str, int] = {}
    keyed = []
    for rank, row in enumerate(sorted(totals, key=interest)):
        turns[row["source"]] = turns.get(row["source"], -1) + 1
        keyed.append((turns[row["source"]], rank, row["problem_id"]))
    return [name for _, _, name in sorted(keyed)[:wanted]]


def _lucky(outcomes: pa.Table) -> pa.ChunkedArray:
    """`ShownResponse.lucky` of each row."""
    passed_over = pc.and_(outcomes["correct"], pc.invert(outcomes["selected"]))
    weakest = pa.array(
        [min(scores) if scores else None for scores in outcomes["step_scores"].to_pylist()], pa.float64()
    )
    return pc.fill_null(pc.and_(passed_over, pc.less(pa.array(weakest, pa.float64()), _WEAK)), False)


def _distinct(rows: list[dict], delimiter: str, max_steps: int) -> list[ShownResponse]:
    """The different responses: selected first, then right, then wrong; of each, the commonest first."""
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
            score=same[0]["score"],
            weakest=min(same[0]["step_scores"] or [], default=None),
            steps=shown_steps(text, same[0]["step_scores"], delimiter, max_steps),
        )
        for text, same in texts.items()
    ]
    return sorted(distinct, key=lambda r: (not r.selected, r.correct is not True, -r.times))


def _shown(run: Path, rows: list[dict], distinct: list[ShownResponse], limit: int) -> ShownProblem:
    # The first, the luckiest and the commonest wrong one have their places, so that all sides are seen.
    places = [
        distinct[0],
        min((r for r in distinct if r.lucky), key=lambda r: r.weakest, default=None),
        next((r for r in distinct if r.correct is False), None),
    ]
    order = [distinct.index(r) for r in places if r is not None] + list(range(len(distinct)))
    shown = [distinct[index] for index in sorted(list(dict.fromkeys(order))[:limit])]
    first = ADDED | rows[0]
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
        label=first["label"],
        truth=first["truth"],
    )


def _image(path: Path) -> str | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data.startswith(_PNG) else None
