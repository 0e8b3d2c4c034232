"""How much a run samples and learns, stage by stage, before it starts: counted from the configuration and the sizes of
the problem sets, as the stages themselves will. Where the policy decides (steps of a solution, right responses) the
most there can be is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mstar_engine.config import RunConfig
from mstar_engine.data.benchmarks import Benchmark, own_sets
from mstar_engine.data.sources import DataSet
from mstar_engine.evolve.methods import METHODS

STEPS = 6
"""Steps of a solution, where steps.max_steps bounds them by nothing: a guess, for the count of completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One part of a run: `responses` sampled (an upper bound unless `exact`) and optimizer `steps`; `counted` says how
    they come about."""

    name: str
    counted: str
    responses: int = 0
    steps: int = 0
    exact: bool = True


def workload(config: RunConfig, data: DataSet, benchmarks: Sequence[Benchmark] = ()) -> list[Work]:
    """The parts of a run, in order. Parts without responses and steps are left out."""
    stages = config.stages
    parts = []
    if "warmup" in stages:
        parts += _warmup(config, data)
    if "annotate" in stages:
        parts += _annotate(config, data)
    if "prm" in stages:
        parts.append(_prm(config, data))
    if "evolve" in stages:
        parts += _evolve(config, data)
    if "evaluate" in stages:
        parts.append(_evaluate(config, [*own_sets(config, data), *benchmarks]))
    return [part for part in parts if part.responses or part.steps]


def problems_sampled(config: RunConfig, labelled: int) -> int:
    """Problems that all iterations meet together; the last part of a pass may be smaller than the others."""
    iterations, chunk = config.evolve.iterations_of(labelled), config.evolve.problems_of(labelled)
    passes, rest = divmod(iterations, -(-labelled // chunk))
    return passes * labelled + rest * chunk


def _warmup(config: RunConfig, data: DataSet) -> list[Work]:
    warmup, evaluate, examples, what = config.warmup, config.evaluate, len(data.warmup), "demonstrations"
    steps, size = warmup.max_steps, warmup.per_device_train_batch_size * warmup.gradient_accumulation_steps
    parts = []
    if warmup.source == "sampled":
        problems = min(warmup.problems or len(data.train), len(data.train))
        examples, what = problems * min(warmup.keep, warmup.n), "kept"
        examples = min(warmup.max_examples or examples, examples)
        counted = f"{problems:,} problems x {warmup.n}, the answer in the prompt"
        parts.append(Work(name="warmup: sample", counted=counted, responses=problems * warmup.n, exact=False))
    counted = f"{steps:,} steps of {size} {what}"
    if steps < 0:
        steps = max(1, round(warmup.num_train_epochs * examples / size))
        counted = f"{examples:,} {what} / {size}{_epochs(warmup.num_train_epochs)}"
    others, each = len(data.test) + len(data.ood), evaluate.pass_at_k_n + 1
    return [
        *parts,
        Work(name="warmup: train", counted=counted, steps=steps, exact=what != "kept" or warmup.max_steps >= 0),
        Work(
            name="warmup: measure",
            counted=f"{len(data.validation):,} validation x {each} + {others:,} greedy",
            responses=len(data.validation) * each + others,
        ),
    ]


def _evaluate(config: RunConfig, sets: Sequence[Benchmark]) -> Work:
    """Greedy responses and samples to the run's own sets and the benchmarks."""
    n, problems = config.evaluate.n, sum(len(one.problems) for one in sets)
    counts = " + ".join(f"{len(one.problems):,} {one.name}" for one in sets)
    return Work(
        name="evaluate",
        counted=f"({counts}) x {n + 1}" if n else f"{counts}, greedy",
        responses=problems * (n + 1),
    )


def _annotated(config: RunConfig, data: DataSet) -> tuple[int, int]:
    return min(config.annotate.problems, len(data.train)), min(config.annotate.held_out, len(data.validation))


def _annotate(config: RunConfig, data: DataSet) -> list[Work]:
    annotate, (train, held_out) = config.annotate, _annotated(config, data)
    solutions = (train + held_out) * annotate.solutions
    steps = config.steps.max_steps or STEPS
    places, each = steps - 1, annotate.completions  # the outcome of the last step is the solution's own
    if annotate.mode == "binary":
        places = (steps - 1).bit_length()
    guess = "" if config.steps.max_steps else f", if a solution has {steps} steps"
    return [
        Work(
            name="annotate: solutions",
            counted=f"({train:,} + {held_out:,} held out) x {annotate.solutions}",
            responses=solutions,
        ),
        Work(
            name="annotate: completions",
            counted=f"{solutions:,} x {places} steps x {each}, {annotate.mode}{guess}",
            responses=solutions * places * each,
            exact=annotate.mode == "soft" and bool(config.steps.max_steps),
        ),
    ]


def _prm(config: RunConfig, data: DataSet) -> Work:
    prm, (train, _) = config.prm, _annotated(config, data)
    examples = train * config.annotate.solutions
    return Work(
        name="prm: fit",
        counted=f"{examples:,} solutions / {prm.per_device_train_batch_size}{_epochs(prm.num_train_epochs)}",
        steps=prm.num_train_epochs * -(-examples // prm.per_device_train_batch_size),
        exact=False,  # solutions that repeat one of the same problem are not labelled
    )


def _evolve(config: RunConfig, data: DataSet) -> list[Work]:
    labelled, samples = len(data.train), METHODS[config.evolve.method].imitates == "selected"
    iterations, chunk = config.evolve.iterations_of(labelled), config.evolve.problems_of(labelled)
    problems, n, each = problems_sampled(config, labelled), config.rollout.n, config.evaluate.pass_at_k_n + 1
    parts = []
    if samples:
        parts.append(_sweeps(config, iterations, len(data.validation)))
        some = "" if problems == iterations * chunk else f" ({problems:,} in all)"
        counted = f"{_many(iterations, 'iteration')} x {chunk:,} problems{some} x {n}"
        parts.append(Work(name="evolve: sample", counted=counted, responses=problems * n))
    parts.append(_steps(config, iterations, chunk, n if samples else 1, samples))
    parts.append(
        Work(
            name="evolve: measure",
            counted=f"{_many(iterations, 'iteration')} x {len(data.validation):,} validation x {each}",
            responses=iterations * len(data.validation) * each,
        )
    )
    return parts


def _sweeps(config: RunConfig, iterations: int, validation: int) -> Work:
    """The choices of a temperature. Racing and the smooth model stop at a share of the grid's samples."""
    chosen, name = config.temperature, "evolve: temperature"
    if chosen.controller == "fixed":
        return Work(name=name, counted="fixed")
    problems = min(chosen.problems or validation, validation)
    share = 1.0 if chosen.controller == "grid" else chosen.budget
    arms, choices = len(chosen.grid), -(-iterations // chosen.every)
    counted = f"{_many(choices, 'sweep')} x {problems} problems x {arms} temperatures x {chosen.n}"
    return Work(
        name=name,
        counted=counted + (f" x {share:g}, {chosen.controller}" if share < 1 else ""),
        responses=choices * int(share * arms * problems) * chosen.n,
        exact=chosen.controller == "grid",
    )


def _steps(config: RunConfig, iterations: int, chunk: int, n: int, samples: bool) -> Work:
    """Optimizer steps, if every problem kept as many responses as selection allows."""
    train, select = config.train, config.select
    kept = min(select.k, n) if samples and select.kind in ("top_k", "random") else n
    size = train.per_device_train_batch_size * train.gradient_accumulation_steps
    steps = iterations * train.num_train_epochs * -(-chunk * kept // size)
    counted = f"{_many(iterations, 'iteration')} x {chunk:,} problems x {kept} kept / {size}"
    counted += _epochs(train.num_train_epochs)
    # A clock that starts again with each iteration bounds each of them.
    limit = train.max_steps * (iterations if METHODS[config.evolve.method].clock == "iteration" else 1)
    if 0 <= limit < steps:
        steps, counted = limit, f"{counted}, ended by train.max_steps={train.max_steps:,}"
    return Work(name="evolve: train", counted=counted, steps=steps, exact=False)


def _epochs(count: float) -> str:
    return "" if count == 1 else f" x {count:g} epochs"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
