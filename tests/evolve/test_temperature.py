"""Temperature controllers: budgets, repeatability, and that the best temperature is found where the truth is known."""

import json
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.temperature_study import CHOICES, CONTESTANTS, Training, simulate
from mstar_engine.config import TemperatureConfig
from mstar_engine.evolve.continuous import Continuous
from mstar_engine.evolve.racing import MEMORY, Racing
from mstar_engine.evolve.smooth import Evidence, believe, gather
from mstar_engine.evolve.sweep_metric import SweepMetric
from mstar_engine.evolve.temperature import build_controller
from mstar_engine.types import Group, Problem, Response

METRIC = SweepMetric(kind="reward_pass_at_k", k=1, target=2, threshold=0.5)
KINDS = ("grid", "racing", "continuous")


@dataclass
class Curve:
    """A measurer whose problem p is worth `curve(T)` plus noise of (p, T); it refuses to measure a pair twice."""

    problems: int
    curve: object
    noise: float = 0.0
    seed: int = 0
    drawn: int = 0
    prefill_tokens: int = 0
    seconds: float = 0.0
    met: set = field(default_factory=set)

    def measure(self, temperatures, problems: range) -> np.ndarray:
        assert 0 <= problems.start < problems.stop <= self.problems and len(temperatures)
        pairs = {(p, float(t)) for p in problems for t in temperatures}
        assert len(pairs) == len(problems) * len(temperatures) and not pairs & self.met
        self.met |= pairs
        rows = []
        for problem in problems:
            keys = [[self.seed, problem, round(1e4 * t)] for t in temperatures]
            luck = np.array([np.random.default_rng(key).normal() for key in keys])
            rows.append(np.clip(np.array([self.curve(t) for t in temperatures]) + self.noise * luck, 0, 1))
        return np.array(rows)

    def pairs(self) -> int:
        return len(self.met)


CONFIGS = st.builds(
    lambda kind, low, width, arms, budget, every: TemperatureConfig(
        controller=kind, low=low, high=low + width, step=width / arms, budget=budget, every=every, k=1
    ),
    st.sampled_from(KINDS),
    st.sampled_from([0.1, 0.3, 1.0]),
    st.sampled_from([0.4, 1.3]),
    st.integers(1, 13),
    st.sampled_from([0.05, 1 / 3, 1.0]),
    st.integers(1, 3),
)


@given(CONFIGS, st.integers(1, 40), st.sampled_from([0.0, 0.45, 1.0, 2.5]), st.integers(0, 2**20))
@settings(deadline=None, max_examples=60)
def test_budget_repeats_and_restored_state(config: TemperatureConfig, problems: int, start: float, seed: int) -> None:
    """Never above the budget, no pair twice, a choice within the range or the present one; and a controller restored
    from JSON before every choice, like one that repeats an interrupted choice, goes on as the first does."""
    controller, present = build_controller(config, METRIC), start
    for iteration in range(0, 4 * config.every, config.every):
        assert controller.due(iteration)
        state = json.loads(json.dumps(controller.state(), allow_nan=False))
        sweeps = [Curve(problems, lambda t: 0.5 - 0.2 * abs(t - 0.8), 0.3, seed + iteration) for _ in range(2)]
        found = controller.choose(present, iteration, sweeps[0])
        other = build_controller(config, METRIC)
        other.restore(state)
        assert other.choose(present, iteration, sweeps[1]) == found and sweeps[0].met == sweeps[1].met
        assert other.state() == controller.state()
        limit = 1.0 if config.controller == "grid" else config.budget
        assert sweeps[0].pairs() <= limit * len(config.grid) * problems + 1e-6
        assert found.chosen == present or config.low <= found.chosen <= config.high
        assert sum(value.items for value in found.values) == sweeps[0].pairs()
        assert list(found.temperatures) == sorted({t for _, t in sweeps[0].met})
        assert (found.controller, found.present) == (config.controller, present)
        present = found.chosen


@given(st.sampled_from(KINDS), st.integers(0, 13), st.sampled_from([0.3, 0.95, 1.0, 1.6]), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_dominant_temperature_wins(kind: str, best: int, present: float, seed: int) -> None:
    """With a sharp peak anywhere, the ends included; the continuous model, which is smooth, comes close to it."""
    config = TemperatureConfig(controller=kind, budget=1 / 3)
    peak = config.grid[best]
    sweep = Curve(128, lambda t: 0.9 - 0.5 * abs(t - peak), 0.05, seed)
    chosen = build_controller(config, METRIC).choose(present, 0, sweep).chosen
    assert chosen == pytest.approx(peak, abs=0.151 if kind == "continuous" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("present", [0.3, 0.75, 1.0])
def test_without_a_difference_nothing_moves(kind: str, present: float) -> None:
    """All temperatures alike: the one nearest to the present, which racing and the continuous model can keep."""
    found = build_controller(TemperatureConfig(controller=kind), METRIC).choose(present, 0, Curve(64, lambda t: 0.0))
    assert found.chosen == pytest.approx(present, abs=0.0501 if kind == "grid" else 1e-9)


def test_fixed_never_moves() -> None:
    controller = build_controller(TemperatureConfig(controller="fixed"), METRIC)
    assert not any(controller.due(iteration) for iteration in range(5)) and controller.state() == {}


def test_choices_are_due_every_so_many_iterations() -> None:
    controller = build_controller(TemperatureConfig(controller="grid", every=3), METRIC)
    assert [iteration for iteration in range(8) if controller.due(iteration)] == [0, 3, 6]


def test_racing_is_as_good_as_the_grid_at_a_third_of_its_samples() -> None:
    """30 trainings shaped like the paper's; the standard error of their mean difference is about 0.15 points."""
    trainings = [Training(seed) for seed in range(500, 530)]
    grid, racing = (
        np.array([simulate(CONTESTANTS[name], training) for training in trainings]) for name in ("grid", "racing")
    )
    assert grid.shape == (30, CHOICES, 3)
    assert racing[:, :, 1].mean() <= grid[:, :, 1].mean() + 1.0
    assert racing[:, :, 2].max() <= 1 / 3 and (grid[:, :, 2] == 1.0).all()


def test_racing_drops_what_is_clearly_worse() -> None:
    """Arms far from the peak meet fewer problems; what was learned is kept, and is bounded."""
    controller = Racing(TemperatureConfig(controller="racing", budget=1.0))
    found = controller.choose(1.0, 0, Curve(256, lambda t: 0.8 - 0.6 * abs(t - 0.6), 0.1))
    items = dict(zip(found.temperatures, (value.items for value in found.values)))
    assert found.chosen == 0.6 and sum(items.values()) < 0.5 * 14 * 256
    assert all(items[0.6] > 3 * count for temperature, count in items.items() if temperature > 1.05)
    best = max(zip(found.model.mean, found.model.temperatures))
    assert best[1] == 0.6 and best[0] == pytest.approx(0.8, abs=0.03)
    again = controller.choose(0.6, 2, Curve(256, lambda t: 0.8 - 0.6 * abs(t - 0.6), 0.1, seed=1))
    assert 1.6 not in again.temperatures and again.chosen == 0.6
    for iteration in range(4, 20, 2):
        controller.choose(0.6, iteration, Curve(16, lambda t: 0.5, 0.1, seed=iteration))
    assert len(controller.past) == MEMORY


def test_the_curve_agrees_with_differences_of_means() -> None:
    """Complete blocks and many problems: data decide, and the problems' own levels do not matter."""
    rng = np.random.default_rng(0)
    temperatures, truth = np.array([0.3, 0.9, 1.6]), np.array([0.02, 0.05, -0.04])
    values = truth + rng.normal(size=(4000, 1)) + 0.01 * rng.normal(size=(4000, 3))
    whole = gather(temperatures, [(np.arange(3), values)])
    belief = believe(temperatures, 1.3, [whole])
    np.testing.assert_allclose(np.diff(belief.mean), np.diff(values.mean(axis=0)), atol=1e-3)
    # Blocks add up, and a constant of a problem cancels.
    parts = [(np.arange(3), values[:1000] + 7.0), (np.arange(3), values[1000:])]
    for name in ("precision", "weighted"):
        np.testing.assert_allclose(getattr(gather(temperatures, parts), name), getattr(whole, name), rtol=0.01)
    restored = Evidence.of(json.loads(json.dumps(whole.plain())))
    np.testing.assert_array_equal(restored.precision, whole.precision)


def test_noise_of_the_curve_is_that_of_the_data() -> None:
    """Standard errors against repetition: the difference of two means of 200 problems. 300 repetitions put the ratio
    of deviations within 0.12 of 1 but for 1 time in 1000 (3.3 standard errors of 1 / sqrt(2 * 300))."""
    rng = np.random.default_rng(1)
    temperatures = np.array([0.3, 1.6])
    claimed, found = [], []
    for _ in range(300):
        values = 0.5 + rng.normal(size=(200, 1)) + 0.05 * rng.normal(size=(200, 2))
        belief = believe(temperatures, 1.3, [gather(temperatures, [(np.arange(2), values)])])
        difference, error = belief.behind(0, 1)
        found.append(float(difference))
        claimed.append(float(error))
    assert np.std(found) / np.mean(claimed) == pytest.approx(1.0, abs=0.14)


def test_the_continuous_model_learns_from_the_past_and_warns_of_nothing() -> None:
    """The peak lies between grid points; later choices need fewer samples to stay there."""
    controller = Continuous(TemperatureConfig(controller="continuous"), METRIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen, present = [], 1.0
        for iteration in range(0, 12, 2):
            sweep = Curve(64, lambda t: 0.7 - 0.4 * (t - 0.75) ** 2, 0.1, iteration)
            found = controller.choose(present, iteration, sweep)
            present = found.chosen
            chosen.append(present)
    assert np.mean(np.abs(np.array(chosen[2:]) - 0.75)) < 0.1
    curve = found.model
    assert curve.temperatures[0] == 0.3 and curve.temperatures[-1] == 1.6 and present in curve.temperatures
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.mean, curve.high))
    assert dict(zip(curve.temperatures, curve.mean))[present] == pytest.approx(0.7, abs=0.05)


def responses(hits: list[bool], score: float | None) -> tuple[Response, ...]:
    nothing = np.zeros(1, np.float32)
    return tuple(
        Response(
            sample=i, token_ids=np.zeros(1, np.int32), text=str(i), logprobs=nothing, scaled_logprobs=nothing,
            filtered_logprobs=nothing, entropy=nothing, finish_reason="stop", temperature=1.0, correct=hit,
            score=score,
        )
        for i, hit in enumerate(hits)
    )  # fmt: skip


def test_training_rollouts_are_observed_as_far_as_they_tell() -> None:
    """The first n responses of each problem count; without scores, verdicts or enough responses a problem does not."""
    config = TemperatureConfig(controller="continuous", n=2, k=1)
    controller = Continuous(config, METRIC)

    def groups(*some: tuple[Response, ...]) -> list[Group]:
        return [
            Group(problem=Problem(id=str(i), question=""), responses=r, prompt_length=1) for i, r in enumerate(some)
        ]

    controller.observe(0, 0.7, groups(responses([True, True], None), responses([True], 0.5)))
    assert controller.seen == []
    some = groups(responses([True, True, True], 0.5), responses([False, True, True], 0.5), responses([True], 0.5))
    controller.observe(3, 0.7, some)
    (seen,) = controller.seen
    assert (seen.time, seen.temperature, seen.value) == (3.0, 0.7, 0.5) and seen.noise > 0
    state = json.loads(json.dumps(controller.state()))
    other = Continuous(config, METRIC)
    other.restore(state)
    assert other.seen == controller.seen


def test_training_rollouts_move_the_continuous_model() -> None:
    """The same sweeps, with training problems that did much better at 1.3 than before at 0.5: the model leans there."""
    beliefs = []
    for value in (0.2, 0.9):
        controller = Continuous(TemperatureConfig(controller="continuous"), METRIC)
        controller.record(0, [0.5], np.full((400, 1), 0.5))
        controller.record(1, [1.3], np.full((400, 1), value))
        found = controller.choose(1.0, 2, Curve(16, lambda t: 0.5, 0.3))
        curve = dict(zip(found.model.temperatures, found.model.mean))
        beliefs.append(curve[1.3] - curve[0.5])
    assert beliefs[1] > beliefs[0] + 0.01
