"""A smooth model of the metric over temperature and training time, which proposes temperatures of any real value.

A Gaussian process whose observations are, for every past choice and every iteration, the mean value at the temperatures
used. What was measured together (a block of a sweep; the training problems of an iteration) has a level of its own, so
that problem sets of different difficulty can be compared; what the sets share is the curve, which moves with time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from mstar_engine.config import TemperatureConfig
from mstar_engine.evolve.choice import Controller, Measurer, Recorder, best_near, model_curve
from mstar_engine.evolve.sweep_metric import SweepMetric, outcomes_of
from mstar_engine.summary import SweepSummary
from mstar_engine.types import Group

BLOCKS = 2
"""Equal parts of the problems; after each the model says where to look next."""
CANDIDATES = 131
"""Temperatures considered, evenly spaced: 0.01 apart in the default range."""
CURIOSITY = 2.0
"""Temperatures are proposed by mean + so many standard deviations."""
LEVEL, ANY, OWN = 0.1, 1e5, 1e-2
"""Standard deviation of a level; length scales that ignore a coordinate, and that tell whole numbers apart."""
AMPLITUDES, REACHES = (0.05, 0.1, 0.2), (0.3, 0.5)
"""What the model chooses between by marginal likelihood: the curve's standard deviation, and its length scale in
temperature as a share of the range. A small grid in place of an optimizer: bounded, repeatable, and nothing that could
fail to converge."""
SPAN = 8.0
"""The length scale in time, in choices. Likeness falls off as that of a random walk does (Matern 1/2): a smoother one
would take a trend to go on."""
MEMORY = 8
"""Choices, and the iterations between them, that the model looks back on."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Mean value `value` at `temperature` before iteration `time`, with variance `noise`; `level` numbers what was
    measured together."""

    time: float
    level: int
    temperature: float
    value: float
    noise: float


class Continuous(Controller):
    """See the module. `seen`: every observation, oldest first."""

    def __init__(self, config: TemperatureConfig, metric: SweepMetric) -> None:
        super().__init__(config)
        self.metric = metric
        self.seen: list[Observation] = []
        self.candidates = np.round(np.linspace(config.low, config.high, CANDIDATES), 4)

    def choose(self, present: float, iteration: int, sweep: Measurer) -> SweepSummary:
        """Measure a few temperatures that may be the best, block by block, and take the best of the model.

        The present temperature stays when the budget is below two temperatures of one problem.
        """
        recorder, allowed = Recorder(sweep), self.allowed(sweep.problems)
        arms = max(2, allowed // sweep.problems)
        problems = min(sweep.problems, allowed // arms)
        if not problems:
            return recorder.summary(self.config, present, present)
        self.seen = [one for one in self.seen if one.time >= iteration - MEMORY * self.config.every]
        bounds = np.linspace(0, problems, min(BLOCKS, problems) + 1).astype(int)
        model = _Model(self.config, self.seen)
        for begin, end in pairwise(bounds.tolist()):
            proposed = self.candidates[model.propose(self.candidates, iteration, arms)]
            self.record(iteration, proposed, recorder.measure(proposed, range(begin, end)))
            model = _Model(self.config, self.seen, None if end == problems else model.shape)
        mean, deviation = model.predict(self.candidates, iteration, self.seen[-1].level)
        best = best_near(mean, self.candidates, present)
        chosen = float(self.candidates[best])
        shown = np.unique([*range(0, CANDIDATES, 5), best])
        curve = model_curve(self.candidates[shown], mean[shown], deviation[shown])
        return recorder.summary(self.config, present, chosen, curve)

    def observe(self, iteration: int, temperature: float, groups: Sequence[Group]) -> None:
        """Take in what training problems came to, as far as the metric can say: by the first `n` responses of each."""
        kept = [group.responses[: self.config.n] for group in groups if len(group.responses) >= self.config.n]
        kept = [some for some in kept if all(r.correct is not None for r in some)]
        if self.metric.kind != "pass_at_k":
            kept = [some for some in kept if all(r.score is not None for r in some)]
        if kept:
            values = np.array([[self.metric(outcomes_of(some))] for some in kept])
            self.record(iteration, [temperature], values)

    def record(self, iteration: int, temperatures: Sequence[float], values: np.ndarray) -> None:
        """`values` [problems, temperatures] measured together. The noise is that of values around problem and arm."""
        count, arms = values.shape
        left = values - values.mean(axis=1, keepdims=True) if arms > 1 else values
        left = float(((left - left.mean(axis=0)) ** 2).sum())
        noise = (left + 0.1) / ((count - 1) * max(1, arms - 1) + 1) / count
        level = self.seen[-1].level + 1 if self.seen else 0
        for temperature, value in zip(temperatures, values.mean(axis=0)):
            self.seen.append(Observation(float(iteration), level, float(temperature), float(value), noise))

    def state(self) -> dict[str, Any]:
        """The observations, a list each."""
        names = Observation.__slots__
        return {"seen": [[getattr(one, name) for name in names] for one in self.seen]}

    def restore(self, state: dict[str, Any]) -> None:
        """`Controller.restore`."""
        self.seen = [Observation(*one) for one in state["seen"]]


class _Model:
    """The process given observations; `shape` (amplitude, reach) by marginal likelihood unless given."""

    def __init__(
        self, config: TemperatureConfig, seen: Sequence[Observation], shape: tuple[float, float] | None = None
    ) -> None:
        self.width, self.every = config.high - config.low, config.every
        self.inputs = np.array([[one.temperature, one.time, one.level] for one in seen]).reshape(-1, 3)
        self.average = float(np.mean([one.value for one in seen])) if seen else 0.5
        self.values = np.array([one.value for one in seen]) - self.average
        self.noise = np.array([one.noise for one in seen])
        self.shape = shape
        if not seen:
            self.process = GaussianProcessRegressor(self._kernel(AMPLITUDES[1], REACHES[1]), optimizer=None)
        elif shape is not None:
            self.process = self._fit(*shape)
        else:
            shapes = [(amplitude, reach) for amplitude in AMPLITUDES for reach in REACHES]
            fits = [self._fit(*one) for one in shapes]
            best = int(np.argmax([fit.log_marginal_likelihood_value_ for fit in fits]))
            self.process, self.shape = fits[best], shapes[best]

    def _kernel(self, amplitude: float, reach: float) -> Any:
        curve = RBF([reach * self.width, ANY, ANY], "fixed") * Matern([ANY, SPAN * self.every, ANY], "fixed", nu=0.5)
        level = RBF([ANY, ANY, OWN], "fixed")
        return ConstantKernel(amplitude**2, "fixed") * curve + ConstantKernel(LEVEL**2, "fixed") * level

    def _fit(self, amplitude: float, reach: float) -> GaussianProcessRegressor:
        kernel = self._kernel(amplitude, reach)
        return GaussianProcessRegressor(kernel, alpha=self.noise, optimizer=None).fit(self.inputs, self.values)

    def propose(self, candidates: np.ndarray, iteration: int, count: int) -> np.ndarray:
        """Indices of `count` different candidates, ascending: each the most promising once the others are known."""
        mean, covariance = self._posterior(candidates, iteration, -1)
        noise = 2 * float(self.noise.mean()) if len(self.noise) else 0.01
        best = int(mean.argmax()) if len(self.noise) else 0
        # Only differences to the best matter; the level falls out of them.
        covariance = covariance - covariance[[best]] - covariance[:, [best]] + covariance[best, best]
        chosen: list[int] = []
        for _ in range(count):
            promise = mean + CURIOSITY * np.sqrt(np.maximum(np.diag(covariance), 0.0))
            promise[chosen] = -np.inf
            pick = int(promise.argmax())
            chosen.append(pick)
            column = covariance[:, pick]
            covariance = covariance - np.outer(column, column) / (column[pick] + noise)
        return np.sort(np.array(chosen))

    def predict(self, candidates: np.ndarray, iteration: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the metric for the problems measured as `level`."""
        mean, covariance = self._posterior(candidates, iteration, level)
        return mean, np.sqrt(np.maximum(np.diag(covariance), 0.0))

    def _posterior(self, candidates: np.ndarray, iteration: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.column_stack([candidates, np.full((len(candidates), 2), (iteration, level), float)])
        mean, covariance = self.process.predict(at, return_cov=True)
        return mean + self.average, covariance
