"""What a run samples and learns, counted before it starts: the paper's figures, and those of the stages' own loops."""

from pathlib import Path

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.data.sources import DataSet, load_data
from mstar_engine.evolve.prompts import interval
from mstar_engine.evolve.workload import STEPS, Work, problems_sampled, workload
from mstar_engine.types import Problem

PAPER = Path(__file__).parents[2] / "examples" / "mstar_paper.yaml"


def of(count: int) -> list[Problem]:
    return [Problem(id="1", question="?", gold="1")] * count


def parts_of(config, **sizes: int) -> dict[str, Work]:
    sets = dict.fromkeys(("warmup", "train", "validation", "test", "ood"), 0) | sizes
    return {part.name: part for part in workload(config, DataSet(**{name: of(size) for name, size in sets.items()}))}


def test_the_papers_run() -> None:
    config = load_config(PAPER)
    parts = parts_of(config, warmup=100_000, train=180_000, validation=250, test=750, ood=1000)
    sampled = parts["evolve: sample"]
    assert (
        sampled.responses == 22 * 720_000
        and sampled.exact
        and "22 iterations x 45,000 problems x 16" in sampled.counted
    )
    assert parts["evolve: temperature"].responses == 11 * 56_000 and parts["evolve: temperature"].exact
    assert parts["warmup: train"].steps == round(100_000 / 128)
    assert parts["evolve: train"].steps == 10_000 and "train.max_steps=10,000" in parts["evolve: train"].counted
    assert parts["annotate: solutions"].responses == 50_000 + 250 * 4
    assert parts["annotate: completions"].responses == 51_000 * (STEPS - 1) * 8
    assert parts["prm: fit"].steps == 2 * -(-50_000 // 128)
    assert parts["evolve: measure"].responses == 22 * 250 * 17
    assert parts["evaluate"].responses == 1750


@pytest.mark.parametrize(
    ("labelled", "share", "iterations"), [(10, 0.25, 9), (10, 0.3, 1), (7, 3, 5), (8, 0.25, -1), (5, 1.0, 4)]
)
def test_problems_are_those_that_the_iterations_meet(labelled: int, share: float | int, iterations: int) -> None:
    """The last part of a pass may be smaller."""
    config = load_config("default", [f"evolve.interval={share}", f"evolve.iterations={iterations}"])
    problems = [Problem(id=str(i), question="?") for i in range(labelled)]
    number = config.evolve.iterations_of(labelled)
    met = sum(len(interval(problems, config.evolve.interval, i, 0)) for i in range(number))
    assert problems_sampled(config, labelled) == met


def test_methods_and_controllers() -> None:
    sft = parts_of(load_config("default", ["preset=sft"]), warmup=10, train=100, validation=8, test=4)
    assert "evolve: sample" not in sft and "evolve: temperature" not in sft
    rest = parts_of(load_config("default", ["preset=rest_em", "train.max_steps=3"]), train=256, validation=8)
    assert rest["evolve: train"].steps == 3 * 2  # two passes, and each iteration's clock begins again
    racing = parts_of(load_config("default", ["evolve.iterations=3"]), train=100, validation=64)
    assert racing["evolve: temperature"].responses == 2 * int(0.33 * 14 * 64) * 8
    assert not racing["evolve: temperature"].exact
    binary = parts_of(load_config("default", ["annotate.mode=binary", "steps.max_steps=9"]), train=10, validation=2)
    assert binary["annotate: completions"].responses == 12 * 4 * 4 * 8  # of 8 steps, 4 are looked at


def test_the_default_run_measures_what_it_says() -> None:
    config = load_config("smoke")
    data = load_data(config.data, 0)
    parts = {part.name: part.responses for part in workload(config, data)}
    assert parts["warmup: measure"] == 8 * 3 + 8 + 8 and parts["evolve: sample"] == 2 * 8 * 4
