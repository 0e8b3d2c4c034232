"""Racing: successive elimination of temperatures, on paired differences, with a smooth curve through them.

Problems come in blocks, one engine call each; a block's problems meet up to `ARMS` of the temperatures that are still
in the race, in turn, so that each prompt is prefilled once and no (problem, arm) is sampled twice. After each block,
what is clearly worse than the best is out. Three things save samples over the grid: arms are compared on the same
problems with common random numbers; neighbours inform each other; and earlier choices count, with some forgetting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mstar_engine.config import TemperatureConfig
from mstar_engine.evolve.choice import Controller, Measurer, Recorder, model_curve
from mstar_engine.evolve.smooth import Belief, Evidence, believe, gather
from mstar_engine.summary import ModelCurve, SweepSummary

BLOCKS, LEAST_BLOCK = 8, 8
"""The problems are dealt out in about so many blocks, of so many problems at least."""
ARMS = 5
"""Arms of a block, besides the leader and the present one: many problems say more than many arms, with a smooth curve
through them."""
OUT = 2.0
"""An arm leaves the race when it is so many standard errors behind."""
LEFT = 3
"""Past choices alone leave so many arms in the race at least: they are no measurement of the policy as it is."""
MEMORY = 6
"""Choices remembered."""


class Racing(Controller):
    """Successive elimination within `budget`. `past`: the evidence of earlier choices, oldest first.

    The present temperature stays unless another is `margin` standard errors ahead. A smaller margin moves sooner where
    the optimum moves, and more often for nothing; benchmarks/temperature_study.py has figures for 1 and for 1.96.
    """

    def __init__(self, config: TemperatureConfig) -> None:
        super().__init__(config)
        self.past: list[Evidence] = []

    def choose(self, present: float, iteration: int, sweep: Measurer) -> SweepSummary:
        """See the module. A present temperature off the grid is one more arm."""
        grid = np.array(self.config.grid)
        nearest = int(np.abs(grid - present).argmin())
        arms = grid if abs(grid[nearest] - present) < 1e-6 else np.unique([*grid, present])
        home = int(np.abs(arms - present).argmin())
        recorder, blocks = Recorder(sweep), []
        belief = self._believe(arms, [])
        alive = self._alive(belief, np.arange(len(arms)), home, LEFT) if self.past else np.arange(len(arms))
        begin, block = 0, max(LEAST_BLOCK, -(-sweep.problems // BLOCKS))
        while len(alive) > 1:
            left = self.allowed(sweep.problems) - recorder.pairs
            lead = _leader(belief, alive) if blocks or self.past else home
            raced = _dealt(alive, len(blocks), {lead, home}, left)
            size = min(block, sweep.problems - begin, left // len(raced)) if len(raced) > 1 else 0
            if not size:
                break
            blocks.append((raced, recorder.measure(arms[raced], range(begin, begin + size))))
            begin += size
            belief = self._believe(arms, blocks)
            alive = self._alive(belief, alive, home, 1)
        lead = _leader(belief, alive)
        ahead, error = belief.behind(home, lead)
        moves = bool(blocks) and ahead > self.config.margin * error
        if blocks:
            self.past = [*self.past, gather(arms, blocks)][-MEMORY:]
        model = _curve(belief, blocks) if blocks else None
        return recorder.summary(self.config, present, arms[lead] if moves else present, model)

    def _believe(self, arms: np.ndarray, blocks: list[tuple[np.ndarray, np.ndarray]]) -> Belief:
        now = gather(arms, blocks)
        return believe(arms, self.config.high - self.config.low, [*self.past, now])

    def _alive(self, belief: Belief, alive: np.ndarray, home: int, least: int) -> np.ndarray:
        """Those of `alive` that may still be the best, `least` at least, and the present one."""
        behind, error = belief.behind(alive, _leader(belief, alive))
        stays = behind <= OUT * error
        stays[np.argsort(behind, kind="stable")[:least]] = True
        return alive[stays | (alive == home)]

    def state(self) -> dict[str, Any]:
        """The evidence of the last choices."""
        return {"past": [one.plain() for one in self.past]}

    def restore(self, state: dict[str, Any]) -> None:
        """`Controller.restore`."""
        self.past = [Evidence.of(one) for one in state["past"]]


def _leader(belief: Belief, alive: np.ndarray) -> int:
    """The best of `alive`, the lower on a tie."""
    return int(alive[belief.mean[alive].argmax()])


def _dealt(alive: np.ndarray, turn: int, always: set[int], pairs: int) -> np.ndarray:
    """The arms of a block: every so many of `alive`, from another one each turn, and `always`; `pairs` at most."""
    stride = -(-len(alive) // ARMS)
    arms = np.unique([*alive[turn % stride :: stride], *always])
    return arms if len(arms) <= pairs else arms[np.linspace(0, len(arms) - 1, max(0, pairs)).astype(int)]


def _curve(belief: Belief, blocks: list[tuple[np.ndarray, np.ndarray]]) -> ModelCurve:
    """The belief with the level that the measured problems give it, in [0, 1]."""
    mean, deviation = belief.centred()
    rest = sum(float((values - mean[arms]).mean(axis=1).sum()) for arms, values in blocks)
    mean = mean + rest / sum(len(values) for _, values in blocks)
    return model_curve(belief.temperatures, mean, deviation)
