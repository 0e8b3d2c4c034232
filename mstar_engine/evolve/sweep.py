"""A sweep: the responses to some validation problems at many temperatures, in one engine call a request.

The temperatures of a request are arms below one prefix: each prompt is prefilled once, and sample i shares its random
numbers over all arms, so that arms are compared in pairs. What a problem came to is durable before the next is waited
for, in `sweep_<number>_<round>`, one round an engine call; the same requests made again read what is there and sample
the rest only, so an interrupted sweep goes on and ends in the same choice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mstar_engine.evolve.sweep_metric import Outcomes, SweepMetric, outcomes_of
from mstar_engine.report.progress import Phase
from mstar_engine.reward.answers import judge
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.table_file import TableWriter, read_tables
from mstar_engine.types import Group, Problem, SamplingParams

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt_length", pa.int32()),
        ("temperature", pa.float64()),
        ("sample", pa.int32()),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
        ("length", pa.int32()),
        ("text", pa.int64()),
    ]
)
"""One row a response, arm by arm; `text` is `sweep_metric.text_key`, `score` null without a process reward model."""
_OUTCOMES = ("correct", "score", "length", "text")


class Sweep:
    """One choice's sampling from the policy in `engine`: `params.n` responses a problem and temperature.

    `drawn` responses, from `prefill_tokens` of prompts, were asked for so far, those of an earlier sitting included;
    `seconds` are this sitting's.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        problems: Sequence[Problem],
        params: SamplingParams,
        metric: SweepMetric,
        *,
        folder: Path,
        number: int,
        prm: ProcessRewardModel | None = None,
        phase: Phase | None = None,
    ) -> None:
        """`params.temperature` is not read. ValueError without problems, or naming one without a reference answer."""
        if not problems:
            raise ValueError(
                "temperature: no validation problems to choose by; give some, or temperature.controller=fixed"
            )
        for problem in problems:
            if problem.gold is None:
                raise ValueError(
                    f"temperature: validation problem {problem.id} has no reference answer; give one, or choose "
                    "temperature.controller=fixed"
                )
        self.engine, self.params, self.metric, self.prm = engine, params, metric, prm
        self.validation = list(problems)
        self.folder, self.number, self.phase = folder, number, phase
        self.rounds = self.drawn = self.prefill_tokens = 0
        self.seconds = 0.0

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return len(self.validation)

    def measure(self, temperatures: Sequence[float], problems: range) -> np.ndarray:
        """The metric of each of `problems` at each of `temperatures`: float64 [problems, temperatures].

        One engine call. ValueError when `max_rows` does not hold all arms of a problem.
        """
        begun = time.perf_counter()
        values = self._round([float(t) for t in temperatures], self.validation[problems.start : problems.stop])
        self.seconds += time.perf_counter() - begun
        return values

    def _round(self, temperatures: list[float], problems: list[Problem]) -> np.ndarray:
        self.rounds += 1
        n, path = self.params.n, self.folder / f"sweep_{self.number:04d}_{self.rounds:02d}.parquet"
        begun = next(iter(read_tables(path)), None)  # by an earlier sitting
        if begun is not None and begun["temperature"].to_pylist()[: n * len(temperatures) : n] != temperatures:
            raise ValueError(f"{path}: begun at other temperatures than {temperatures}; remove it to sample anew")
        with TableWriter(path, SCHEMA) as writer:
            missing = [problem for problem in problems if problem.id not in writer.finished]
            self._show(len(problems) - len(missing))
            if missing:
                degrees, samples = np.repeat(temperatures, n), np.tile(np.arange(n, dtype=np.int32), len(temperatures))
                for batch in self.engine.generate_batches(
                    missing,
                    replace(self.params, n=n * len(temperatures)),
                    temperatures=lambda _: degrees,
                    samples=lambda _: samples,
                ):
                    self._keep(writer, batch, degrees)
            writer.finish()
        return self._values(path, problems)

    def _keep(self, writer: TableWriter, batch: Sequence[Group], degrees: np.ndarray) -> None:
        """Judge and score groups that finished, and make their outcomes durable."""
        judged = [judge(group) for group in batch]
        if self.prm is not None and self.metric.kind != "pass_at_k":
            judged = list(self.prm.scored(judged))
        writer.append(*(_table(group, degrees) for group in judged))
        responses = [response for group in judged for response in group.responses]
        self._show(
            len(judged),
            tokens=sum(len(response.token_ids) for response in responses),
            sampled=len(responses),
            accepted=sum(bool(response.correct) for response in responses),
        )

    def _values(self, path: Path, problems: list[Problem]) -> np.ndarray:
        """The metric of a round that is over, from its file alone: a resumed sweep sees what the first one saw."""
        found = read_sweep(path, self.metric)
        self.drawn += found.drawn
        self.prefill_tokens += found.prefill_tokens
        place = {name: row for row, name in enumerate(found.problem_ids)}
        return found.values[[place[problem.id] for problem in problems]]

    def _show(self, problems: int, **counts: int) -> None:
        if self.phase is not None:
            self.phase.advance(problems, **counts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """A round as its file has it: `values` float64 [problems, temperatures] of a metric, by problem id."""

    temperatures: tuple[float, ...]
    problem_ids: tuple[str, ...]
    values: np.ndarray
    drawn: int
    prefill_tokens: int


def read_sweep(path: Path, metric: SweepMetric) -> Recorded:
    """A round that is over, measured by any metric that its outcomes allow."""
    (table,) = read_tables(path)
    columns = {name: table[name].to_numpy() for name in SCHEMA.names}  # a null score is NaN
    ids = columns["problem_id"]
    rows = int(np.argmax(ids != ids[0])) or len(ids)  # of a problem
    n = int(columns["sample"][:rows].max()) + 1
    if len(ids) % rows or rows % n or not np.array_equal(np.repeat(ids[::rows], rows), ids):
        raise ValueError(f"{path}: problems with different numbers of responses; no sweep")
    values = np.empty((len(ids) // rows, rows // n))
    for row, arm in np.ndindex(values.shape):
        begin = row * rows + arm * n
        values[row, arm] = metric(Outcomes(*(columns[name][begin : begin + n] for name in _OUTCOMES)))
    return Recorded(
        temperatures=tuple(columns["temperature"][:rows:n].tolist()),
        problem_ids=tuple(ids[::rows].tolist()),
        values=values,
        drawn=len(ids),
        prefill_tokens=int(columns["prompt_length"][::rows].sum()),
    )


def _table(group: Group, degrees: np.ndarray) -> pa.Table:
    """A finished group as rows of `SCHEMA`, arm by arm."""
    rows, outcomes = len(group.responses), outcomes_of(group.responses)
    columns = {
        "problem_id": [group.problem.id] * rows,
        "prompt_length": [group.prompt_length] * rows,
        "temperature": degrees,
        "sample": [response.sample for response in group.responses],
        "correct": outcomes.correct,
        "score": [response.score for response in group.responses],
        "length": outcomes.length,
        "text": outcomes.text,
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)
