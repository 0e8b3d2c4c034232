"""The rollouts that the report shows: problems, each with its responses, the telling ones first.

Texts are read for the chosen problems only, so that a large run does not have to fit into memory, and what is shown is
bounded, so that the page stays light.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mstar_engine.report.choose import Tally, choose, is_lucky, tallies
from mstar_engine.report.picture import picture
from mstar_engine.report.reasons import KEPT, Outcome, Reason, reasons
from mstar_engine.report.steps import ShownStep, shown_steps
from mstar_engine.rollout_file import ADDED
from mstar_engine.run_directory import report_image_path

_COLUMNS = [
    "problem_id", "source", "sample", "correct", "selected", "step_scores", "iteration", "question", "gold", "text",
    "answer", "score", "token_ids", "finish_reason", *ADDED,
]  # fmt: skip
# Different responses of a problem, those that wait behind "more" included, and characters of one.
_MOST_RESPONSES = 16
_MOST_CHARACTERS = 6000
_BATCH = 1024
# What the page may take for rollouts, in characters.
BUDGET = 1_000_000


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response, and how many samples gave just this text; `steps` is empty when it is to be shown whole,
    `weakest` the lowest step score, `cut` the characters at the end that are not shown."""

    text: str
    answer: str | None
    correct: bool | None
    selected: bool
    times: int
    reason: Reason
    score: float | None = None
    steps: tuple[ShownStep, ...] = ()
    weakest: float | None = None
    cut: int = 0

    @property
    def lucky(self) -> bool:
        """Right and not selected, with a weak step: the answer may be luck."""
        return is_lucky(self.correct, self.selected, self.weakest)


@dataclass(frozen=True, slots=True)
class ShownProblem:
    """A problem with its image (a data URI, None when the run kept none) and its different responses.

    `responses` are shown at once, `more` on demand, `hidden` not at all. `outcome` is one of `choose.OUTCOMES`.
    `label` and `truth` as in `types.Problem`: beside a pseudo-label, `truth` is the true answer where it is known.
    """

    id: str
    iteration: int
    source: str
    question: str
    gold: str | None
    image: str | None
    responses: tuple[ShownResponse, ...]
    more: tuple[ShownResponse, ...]
    samples: int
    correct: int
    hidden: int
    outcome: str
    label: str = "gold"
    truth: str | None = None

    @property
    def size(self) -> int:
        """About how many characters of the page it takes."""
        texts = sum(250 + len(r.text) + 120 * len(r.steps) for r in self.responses + self.more)
        return len(self.image or "") + len(self.question) + texts


@dataclass(frozen=True, slots=True)
class ShownIteration:
    """The shown problems of one iteration; `problems` were sampled in all, `outcomes` of each outcome."""

    iteration: int
    problems: int
    outcomes: dict[str, int]
    shown: list[ShownProblem]


def read_iterations(run: Path, newest: int = 24, first: int = 8, **how: Any) -> list[ShownIteration]:
    """Up to `newest` problems of the newest iteration and up to `first` of the first one, newest first.

    `how` is that of `read_samples`.
    """
    files = _files(run)
    wanted = {file: count for file, count in zip((files[-1], files[0]), (newest, first))} if files else {}
    if len(files) == 1:
        wanted = {files[0]: newest}
    whole = sum(wanted.values())
    found = [_read(run, file, count, budget=BUDGET * count // whole, **how) for file, count in wanted.items() if count]
    return [one for one in found if one.shown]


def read_samples(run: Path, problems: int = 24, responses: int = 3, **how: Any) -> list[ShownProblem]:
    """Up to `problems` problems of the newest iteration, at most `responses` (2 or more) of each shown at once.

    `delimiter` and `max_steps` are those by which steps were scored, `select` the configuration's section of that name.
    """
    files = _files(run)
    return _read(run, files[-1], problems, responses, **how).shown if files else []


def _files(run: Path) -> list[Path]:
    return sorted((run / "rollouts").glob("iteration_*.parquet"))


def _read(
    run: Path,
    file: Path,
    problems: int,
    responses: int = 3,
    *,
    delimiter: str = "\n\n",
    max_steps: int = 0,
    select: dict[str, Any] | None = None,
    budget: int = BUDGET,
) -> ShownIteration:
    images = {path.name for path in (run / "report_images").glob("*.png")}
    found = tallies(file)
    ids = choose(found, problems, lambda name: report_image_path(run, name).name in images)
    groups: dict[str, list[dict]] = {name: [] for name in ids}
    for row in sorted(_rows(file, ids), key=lambda row: row["sample"]):
        groups[row["problem_id"]].append(row)
    shown, spent = [], 0
    for name, group in groups.items():
        one = _shown(run, group, _distinct(group, delimiter, max_steps, select or {}), found[name], responses)
        spent += one.size
        if shown and spent > budget:
            break
        shown.append(one)
    outcomes = Counter(tally.outcome for tally in found.values())
    return ShownIteration(shown[0].iteration if shown else 0, len(found), dict(outcomes), shown)


def _rows(file: Path, ids: Sequence[str]) -> Iterator[dict]:
    """The rows of these problems, read batch by batch from the parts of the file that may hold them."""
    with pq.ParquetFile(file) as parquet:
        for part in range(parquet.num_row_groups):
            known = (
                parquet.metadata.row_group(part).column(parquet.schema_arrow.get_field_index("problem_id")).statistics
            )
            if known is not None and known.has_min_max and not any(known.min <= name <= known.max for name in ids):
                continue
            for batch in parquet.iter_batches(_BATCH, row_groups=[part], columns=_COLUMNS):
                yield from batch.filter(pc.is_in(batch["problem_id"], pa.array(ids, pa.string()))).to_pylist()


def _distinct(rows: list[dict], delimiter: str, max_steps: int, select: dict[str, Any]) -> list[ShownResponse]:
    """The different responses: selected first, then right, then wrong; of each, the commonest first."""
    outcomes = [
        Outcome(
            text=r["text"],
            correct=r["correct"],
            selected=r["selected"],
            score=r["score"],
            tokens=len(r["token_ids"]),
            finish_reason=r["finish_reason"],
            answer=r["answer"],
            verdict=r.get("reason"),
        )
        for r in rows
    ]
    texts: dict[str, list[tuple[dict, Reason]]] = {}
    for row, reason in zip(rows, reasons(outcomes, select), strict=True):
        texts.setdefault(row["text"], []).append((row, reason))
    distinct = [_response(same, delimiter, max_steps) for same in texts.values()]
    return sorted(distinct, key=lambda r: (not r.selected, r.correct is not True, -r.times))


def _response(same: list[tuple[dict, Reason]], delimiter: str, max_steps: int) -> ShownResponse:
    """The samples with one text as one response: the kept one stands for them."""
    row, reason = next((one for one in same if one[1].kind == KEPT), same[0])
    if reason.kind == KEPT and len(same) > 1:
        reason = Reason(KEPT, "the same text counts once")
    text, steps = row["text"], shown_steps(row["text"], row["step_scores"], delimiter, max_steps)
    cut = max(0, len(text) - _MOST_CHARACTERS)
    return ShownResponse(
        text=text[: len(text) - cut],
        answer=row["answer"],
        correct=row["correct"],
        selected=row["selected"],
        times=len(same),
        reason=reason,
        score=row["score"],
        weakest=min(row["step_scores"] or [], default=None),
        steps=_within(steps, _MOST_CHARACTERS) if cut else steps,
        cut=cut,
    )


def _within(steps: Iterable[ShownStep], room: int) -> tuple[ShownStep, ...]:
    """The first steps, as many as have `room` characters between them."""
    held = []
    for step in steps:
        room -= len(step.text)
        if room < 0:
            break
        held.append(step)
    return tuple(held)


def _shown(run: Path, rows: list[dict], distinct: list[ShownResponse], tally: Tally, limit: int) -> ShownProblem:
    # The first, the luckiest and the commonest wrong one have their places, so that all sides are seen.
    places = [
        distinct[0],
        min((r for r in distinct if r.lucky), key=lambda r: r.weakest, default=None),
        next((r for r in distinct if r.correct is False), None),
    ]
    order = [distinct.index(r) for r in places if r is not None] + list(range(len(distinct)))
    first_seen = set(list(dict.fromkeys(order))[:limit])
    more = [one for index, one in enumerate(distinct) if index not in first_seen][: _MOST_RESPONSES - limit]
    first = ADDED | rows[0]
    return ShownProblem(
        id=first["problem_id"],
        iteration=first["iteration"],
        source=first["source"],
        question=first["question"],
        gold=first["gold"],
        image=picture(report_image_path(run, first["problem_id"])),
        responses=tuple(distinct[index] for index in sorted(first_seen)),
        more=tuple(more),
        samples=tally.samples,
        correct=tally.right,
        hidden=len(distinct) - len(first_seen) - len(more),
        outcome=tally.outcome,
        label=first["label"],
        truth=first["truth"],
    )
