"""Temperature controllers: fixed, the paper's grid, racing, and a continuous model (paper sections 4 and 6).

    controller = build_controller(config.temperature, SweepMetric.of(config))
    if controller.due(iteration):
        summary = controller.choose(present, iteration, sweep)

All keep the contract of `choice.Controller`.
"""

from __future__ import annotations

from mstar_engine.config import TemperatureConfig
from mstar_engine.evolve.choice import Controller, Measurer, Recorder, best_near
from mstar_engine.evolve.continuous import Continuous
from mstar_engine.evolve.racing import Racing
from mstar_engine.evolve.sweep_metric import SweepMetric
from mstar_engine.summary import SweepSummary


class Grid(Controller):
    """The paper's: the argmax over the grid, all problems at every temperature. Equal ones: the nearest."""

    def choose(self, present: float, iteration: int, sweep: Measurer) -> SweepSummary:
        """`Controller.choose`."""
        recorder, grid = Recorder(sweep), self.config.grid
        values = recorder.measure(grid, range(sweep.problems))
        return recorder.summary(self.config, present, grid[best_near(values.mean(axis=0), grid, present)])


def build_controller(config: TemperatureConfig, metric: SweepMetric) -> Controller:
    """The controller that `config` names; `metric` is how the continuous one reads training rollouts."""
    if config.controller == "continuous":
        return Continuous(config, metric)
    return {"fixed": Controller, "grid": Grid, "racing": Racing}[config.controller](config)
