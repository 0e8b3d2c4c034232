"""What temperature controllers are worth where the truth is known: regret against samples spent.

Each simulated training has a true curve of Reward-Pass@2 over temperature that moves from the shape published for the
warmed-up policy (0.5: 52.8, 0.7: 52.0, 1.0: 44.4, 1.2: 42.4, 1.5: 34.4) to the late one (0.5 to 1.2 within 48 to 55,
best near 1.0; paper section 6), at a pace and with smooth deviations of its own. A problem is hit at a temperature when

    q(T) + difficulty + taste(T) + luck(T) > 0,

all standard normal together, so that the curve is exactly the share of hits. Difficulty and taste are the problem's and
stay; luck is new in each sweep and alike at neighbouring temperatures, which is what common random numbers do. A
controller chooses 11 times, every second iteration, on the same 250 problems with n = 16. Regret is the best value of
the true curve less that at the choice, in points; means over trainings have 95% t intervals. The constants of the
controllers were set on trainings of other seeds.

With --runs, the recorded grid sweeps of real runs as well: a controller chooses on one half of the problems, and its
choice is worth its mean on the other half, so that nobody is judged by the noise it was chosen by.

    python -m benchmarks.temperature_study [--curves 200] [--runs DIR] [--json FILE]

DIR holds run directories made with temperature.controller=grid. The floor of regret is 0.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student

from benchmarks.harness import device_name, versions
from mstar_engine.config import TemperatureConfig
from mstar_engine.config_parse import load_config
from mstar_engine.evolve.choice import Controller
from mstar_engine.evolve.continuous import Continuous
from mstar_engine.evolve.sweep import read_sweep
from mstar_engine.evolve.sweep_metric import SweepMetric
from mstar_engine.evolve.temperature import build_controller
from mstar_engine.journal import read_events

CHOICES, PROBLEMS, SAMPLES, EVERY = 11, 250, 16, 2
FINE = np.round(np.arange(0.3, 1.6001, 0.01), 2)
PUBLISHED = (0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 1.6)
EARLY = (52.0, 52.8, 52.0, 44.4, 42.4, 34.4, 31.5)
LATE = (46.0, 48.5, 52.0, 55.0, 52.0, 45.0, 41.0)
DIFFICULTY, TASTE, LUCK = 0.5, 0.2, 0.3
"""Shares of the variance. Most of what decides a problem is the problem."""
DEVIATION = 1.0
"""Standard deviation of a training's own curve around the published ones, in points."""
TRAINING_PROBLEMS, EASIER = 500, 0.3
"""Training problems of an iteration, and how much easier they are (in standard deviations of the latent scale)."""


def waves(length: float) -> np.ndarray:
    """Functions of temperature [m, len(FINE)] whose standard normal mix is a unit process with this length scale."""
    values, vectors = np.linalg.eigh(np.exp(-0.5 * ((FINE[:, None] - FINE) / length) ** 2))
    kept = values > 1e-4 * values.max()
    mixed = (vectors[:, kept] * np.sqrt(values[kept])).T
    return mixed / np.sqrt((mixed**2).sum(axis=0))


CURVES, TASTES, LUCKS = waves(0.35), waves(0.5), waves(0.25)


def published(values: Sequence[float]) -> np.ndarray:
    """Published points joined and smoothed, on FINE, in points."""
    kernel = np.exp(-0.5 * (np.arange(-25, 26) / 8) ** 2)
    return np.convolve(np.pad(np.interp(FINE, PUBLISHED, values), 25, mode="edge"), kernel / kernel.sum(), "valid")


class Training:
    """One simulated training; `curves` [CHOICES, len(FINE)] is the truth, a share."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng(seed)
        early, late = (published(v) + DEVIATION * rng.normal(size=len(CURVES)) @ CURVES for v in (EARLY, LATE))
        progress = np.linspace(0, 1, CHOICES)[:, None] ** rng.uniform(0.5, 1.5)
        self.curves = ((1 - progress) * early + progress * late) / 100
        self.difficulty = math.sqrt(DIFFICULTY) * rng.normal(size=PROBLEMS)
        self.taste = math.sqrt(TASTE) * rng.normal(size=(PROBLEMS, len(TASTES)))

    def worth(self, choice: int, temperature: float) -> float:
        """The truth at a temperature, in points."""
        return 100 * float(np.interp(temperature, FINE, self.curves[choice]))

    def regret(self, choice: int, temperature: float) -> float:
        """Points lost."""
        return 100 * float(self.curves[choice].max()) - self.worth(choice, temperature)

    def rollouts(self, choice: int, iteration: int, temperature: float) -> np.ndarray:
        """Hits on training problems [TRAINING_PROBLEMS, 1], which are other ones each time."""
        rng = np.random.default_rng([self.seed, iteration, 1])
        latent = ndtri(self.worth(choice, temperature) / 100) + EASIER + rng.normal(size=(TRAINING_PROBLEMS, 1))
        return (latent > 0).astype(float)


@dataclass
class SimulatedSweep:
    """`choice.Measurer` on a training; `problems` may be fewer than there are."""

    training: Training
    choice: int
    problems: int = PROBLEMS
    drawn: int = 0
    prefill_tokens: int = 0
    seconds: float = 0.0
    luck: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Draw the luck of this sweep."""
        rng = np.random.default_rng([self.training.seed, self.choice, 0])
        self.luck = math.sqrt(LUCK) * rng.normal(size=(PROBLEMS, len(LUCKS)))

    def measure(self, temperatures: Sequence[float], problems: range) -> np.ndarray:
        """`Measurer.measure`."""
        at, who = np.searchsorted(FINE, np.round(temperatures, 2)), slice(problems.start, problems.stop)
        quality = ndtri(np.clip(self.training.curves[self.choice], 0.001, 0.999))[at]
        own = self.training.taste[who] @ TASTES[:, at] + self.luck[who] @ LUCKS[:, at]
        self.drawn += len(problems) * len(at) * SAMPLES
        return (quality + self.training.difficulty[who, None] + own > 0).astype(float)


@dataclass
class RecordedSweep:
    """`choice.Measurer` on recorded values [problems, arms]; a temperature is answered by the nearest arm."""

    temperatures: np.ndarray
    values: np.ndarray
    drawn: int = 0
    prefill_tokens: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> int:
        """How many."""
        return len(self.values)

    def arm(self, temperature: float) -> int:
        """The nearest."""
        return int(np.abs(self.temperatures - temperature).argmin())

    def measure(self, temperatures: Sequence[float], problems: range) -> np.ndarray:
        """`Measurer.measure`; `drawn` counts (problem, arm) pairs."""
        self.drawn += len(problems) * len(temperatures)
        return self.values[problems.start : problems.stop][:, [self.arm(one) for one in temperatures]]


@dataclass(frozen=True)
class Contestant:
    """A controller, the share of the problems that it is given, and what it is told besides."""

    kind: str
    share: float = 1.0
    told: dict[str, float] = field(default_factory=dict)


CONTESTANTS = {
    "fixed": Contestant("fixed"),
    "grid": Contestant("grid"),
    "grid, a third of the problems": Contestant("grid", 1 / 3),
    "racing": Contestant("racing"),
    "racing, margin 1.96": Contestant("racing", told={"margin": 1.96}),
    "continuous": Contestant("continuous"),
}


def controller_of(contestant: Contestant, config: TemperatureConfig) -> Controller:
    """A controller at a third of the grid's samples."""
    config = replace(config, controller=contestant.kind, every=EVERY, budget=1 / 3, **contestant.told)
    return build_controller(config, SweepMetric(kind=config.metric, k=config.k, target=2, threshold=0.5))


def simulate(contestant: Contestant, training: Training) -> list[tuple[float, float, float]]:
    """(temperature, regret, samples as a share of the grid's) of each choice in one training."""
    controller = controller_of(contestant, TemperatureConfig(n=SAMPLES, problems=PROBLEMS))
    temperature, found = 1.0, []
    for choice in range(CHOICES):
        sweep = SimulatedSweep(training, choice, problems=int(contestant.share * PROBLEMS))
        iteration = choice * EVERY
        if controller.due(iteration):
            temperature = controller.choose(temperature, iteration, sweep).chosen
        if isinstance(controller, Continuous):
            for later in range(iteration, iteration + EVERY):
                controller.record(later, [temperature], training.rollouts(choice, later, temperature))
        spent = sweep.drawn / (PROBLEMS * SAMPLES * len(controller.config.grid))
        found.append((temperature, training.regret(choice, temperature), spent))
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% t interval of the mean; of a single value, whose spread is unknown, 100 points to both sides."""
    mean, count = float(np.mean(values)), len(values)
    half = (
        float(student.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else 100.0
    )
    return mean, mean - half, mean + half


def study(seeds: range) -> list[dict[str, Any]]:
    """One row a contestant."""
    trainings, found, seconds = [Training(seed) for seed in seeds], {}, {}
    for name, contestant in CONTESTANTS.items():
        begun = time.perf_counter()
        found[name] = np.array([simulate(contestant, training) for training in trainings])
        seconds[name] = time.perf_counter() - begun
    rows = []
    for name, choices in found.items():
        regret, spent = choices[:, :, 1], choices[:, :, 2]
        rows.append(
            {
                "controller": name,
                "regret": interval(regret.mean(axis=1)),
                "minus_grid": interval((regret - found["grid"][:, :, 1]).mean(axis=1)),
                "first_choice": interval(regret[:, 0]),
                "last_choice": interval(regret[:, -1]),
                "by_choice": regret.mean(axis=0).tolist(),
                "temperature_by_choice": choices[:, :, 0].mean(axis=0).tolist(),
                "samples": [float(spent.mean()), float(spent.max())],
                "milliseconds_a_choice": 1000 * seconds[name] / regret.size,
            }
        )
    return rows


def recorded(folder: Path) -> list[dict[str, Any]]:
    """One row a contestant: what its choices are worth on the half of the problems that it did not see."""
    worth: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    spent: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for run in sorted(path.parent for path in folder.glob("**/journal.jsonl")):
        config = load_config(str(run / "config.yaml"), [])
        events = [event for event in read_events(run / "journal.jsonl") if event["event"] == "iteration"]
        grids = [e["iteration"] for e in events if e.get("sweep") and e["sweep"]["controller"] == "grid"]
        sweeps = [read_sweep(run / f"rollouts/sweep_{i:04d}_01.parquet", SweepMetric.of(config)) for i in grids]
        for name, one in CONTESTANTS.items() if sweeps else ():
            values, costs = [], []
            for half in (0, 1):
                controller, temperature = controller_of(one, config.temperature), config.rollout.temperature
                for number, swept in zip(grids, sweeps):
                    seen, unseen = swept.values[half::2], swept.values[1 - half :: 2]
                    sweep = RecordedSweep(np.array(swept.temperatures), seen[: max(1, int(one.share * len(seen)))])
                    if one.kind != "fixed":
                        temperature = controller.choose(temperature, number - 1, sweep).chosen
                    values.append(100 * float(unseen[:, sweep.arm(temperature)].mean()))
                    costs.append(sweep.drawn / seen.size)
            worth[name].append(float(np.mean(values)))
            spent[name].append(float(np.mean(costs)))
    if not worth["grid"]:
        raise ValueError(f"--runs={folder}: no run there has recorded a sweep of temperature.controller=grid")
    return [
        {
            "controller": name,
            "worth": interval(values),
            "minus_grid": interval(np.subtract(values, worth["grid"])),
            "samples": float(np.mean(spent[name])),
            "runs": len(values),
        }
        for name, values in worth.items()
    ]


def show(rows: Sequence[dict[str, Any]], columns: dict[str, str], samples: Callable[[Any], float]) -> None:
    """A table of means with intervals."""
    print(f"{'controller':<30} " + " ".join(f"{title:>22}" for title in columns.values()) + f"{'samples':>9}")
    for row in rows:
        cells = " ".join(f"{m:7.2f} ({a:5.2f} to {b:5.2f})" for m, a, b in (row[key] for key in columns))
        print(f"{row['controller']:<30} {cells}{100 * samples(row['samples']):8.0f}%", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperature_study")
    parser.add_argument("--curves", type=int, default=200, help="simulated trainings")
    parser.add_argument("--seed", type=int, default=0, help="of the first training")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="replay recorded grid sweeps of the runs in DIR too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    begun = time.perf_counter()
    rows = study(range(options.seed, options.seed + options.curves))
    print(f"regret in points of true Reward-Pass@2, {options.curves} simulated trainings x {CHOICES} choices")
    titles = {"regret": "regret", "minus_grid": "less the grid's", "first_choice": "first choice"}
    show(rows, titles | {"last_choice": "last choice"}, lambda samples: samples[0])
    replayed = recorded(options.runs) if options.runs else []
    if replayed:
        print("points of the metric on unseen problems, recorded grid sweeps")
        show(replayed, {"worth": "worth", "minus_grid": "less the grid's"}, float)
    if options.json is not None:
        record = {
            "simulated": rows, "recorded": replayed, "curves": options.curves, "choices": CHOICES,
            "problems": PROBLEMS, "n": SAMPLES, "seed": options.seed, "seconds": time.perf_counter() - begun,
            "device": device_name(), "versions": versions(), "date": datetime.date.today().isoformat(),
            "command": " ".join(["python -m benchmarks.temperature_study", *sys.argv[1:]]),
        }  # fmt: skip
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
