"""What temperature controllers share: the sampling they may ask for, when they are due, what a choice says of itself.

A controller decides from what it measured alone: no clock, no randomness of its own, so that a choice that is made
again, or after `restore`, is the same choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mstar_engine.config import TemperatureConfig
from mstar_engine.evolve.dynamics import bootstrap, wilson
from mstar_engine.summary import ModelCurve, SweepSummary
from mstar_engine.types import Estimate, Group


class Measurer(Protocol):
    """Where a controller gets its numbers from: `sweep.Sweep`, or a simulation.

    `problems` there are; `drawn` responses from `prefill_tokens` of prompts, in `seconds`, so far.
    """

    @property
    def problems(self) -> int:
        """How many problems there are."""

    drawn: int
    prefill_tokens: int
    seconds: float

    def measure(self, temperatures: Sequence[float], problems: range) -> np.ndarray:
        """The metric in [0, 1] of each of `problems` at each of `temperatures`: [problems, temperatures]."""


class Recorder:
    """Measures through `sweep` and remembers every value, by temperature."""

    def __init__(self, sweep: Measurer) -> None:
        self.sweep = sweep
        self.values: dict[float, list[float]] = {}
        self.pairs = 0
        """(problem, arm) pairs measured so far: each costs n responses."""

    def measure(self, temperatures: Sequence[float], problems: range) -> np.ndarray:
        """`Measurer.measure`."""
        values = self.sweep.measure(temperatures, problems)
        for temperature, column in zip(temperatures, values.T):
            self.values.setdefault(float(temperature), []).extend(column.tolist())
        self.pairs += values.size
        return values

    def summary(
        self,
        config: TemperatureConfig,
        present: float,
        chosen: float,
        model: ModelCurve | None = None,
    ) -> SweepSummary:
        """The choice of `chosen` over `present`, with all that was measured for it."""
        temperatures = tuple(sorted(self.values))
        return SweepSummary(
            controller=config.controller,
            metric=config.metric,
            k=config.k or config.n,
            present=float(present),
            chosen=float(chosen),
            temperatures=temperatures,
            values=tuple(estimate(self.values[temperature]) for temperature in temperatures),
            drawn=self.sweep.drawn,
            prefill_tokens=self.sweep.prefill_tokens,
            seconds=round(self.sweep.seconds, 3),
            model=model,
        )


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of per-problem values: Wilson's interval for hits and misses, else the bootstrap's."""
    if set(values) <= {0.0, 1.0}:
        return wilson(int(sum(values)), len(values))
    return bootstrap(values)


def best_near(values: np.ndarray, temperatures: Sequence[float], present: float) -> int:
    """The index of the largest value; of equal ones that nearest to the present temperature, then the lower."""
    best = np.flatnonzero(values == values.max())
    return int(best[np.abs(np.asarray(temperatures)[best] - present).argmin()])


def model_curve(temperatures: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> ModelCurve:
    """A curve with its 95% interval, kept in [0, 1]."""
    bounds = {"mean": mean, "low": mean - 1.96 * deviation, "high": mean + 1.96 * deviation}
    curves = {name: tuple(np.clip(bound, 0.0, 1.0).tolist()) for name, bound in bounds.items()}
    return ModelCurve(temperatures=tuple(temperatures.tolist()), **curves)


class Controller:
    """How the temperature follows the policy; this one leaves it where it is ("fixed")."""

    def __init__(self, config: TemperatureConfig) -> None:
        self.config = config

    def due(self, iteration: int) -> bool:
        """Whether the temperature is chosen anew before this iteration (0 is the first)."""
        return self.config.controller != "fixed" and iteration % self.config.every == 0

    def choose(self, present: float, iteration: int, sweep: Measurer) -> SweepSummary:
        """Choose by sampling through `sweep`; `present` has been in force. The summary's `chosen` is the choice."""
        return Recorder(sweep).summary(self.config, present, present)

    def observe(self, iteration: int, temperature: float, groups: Sequence[Group]) -> None:
        """See what an iteration's training problems came to at `temperature`."""

    def state(self) -> dict[str, Any]:
        """What later choices depend on, JSON-ready."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier `state`."""

    def allowed(self, problems: int) -> int:
        """(problem, arm) pairs that one choice may measure."""
        return int(self.config.budget * len(self.config.grid) * problems + 1e-9)
