"""Continuity: what a method does to weights, moments and step count, against a plain loop written from its switches."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import digits_problems
from mstar_engine.evolve.examples import reference_example, selected_examples
from mstar_engine.evolve.loop import Evolution, evolve
from mstar_engine.evolve.methods import METHODS, Method
from mstar_engine.evolve.policy import Policy
from mstar_engine.evolve.prompts import interval
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.report.progress import Progress
from mstar_engine.reward import answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.rollout_file import read_rollouts
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.checkpoint import load_weights
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer
from mstar_engine.types import Problem, TrainingExample

ITERATIONS = 3
# Every step has a rate of its own, so that a clock that is off by one shows.
SCHEDULE = Schedule(peak=1e-3, kind="linear", horizon=60)
BATCH = 4
OTHER = {"previous": "initial", "initial": "previous", True: False, False: True, "global": "iteration"}
OTHER["iteration"] = "global"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def half_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds, and whose verdicts depend on the response alone."""
    monkeypatch.setattr(
        answers, "judge_response", lambda response, gold: Verdict(zlib.crc32(response.text.encode()) % 2 == 0, "", "")
    )


def config_of(directory: Path, method: str, **changed: object) -> RunConfig:
    options = {
        "output_dir": directory,
        "threads": 1,
        "evolve.method": method,
        "evolve.interval": 4,
        "rollout.n": 3,
        "rollout.max_completion_length": 6,
        "select.kind": "all",
        "temperature.controller": "fixed",
        "train.per_device_train_batch_size": BATCH,
        "evaluate.pass_at_k_n": 2,
        "evaluate.pass_at_k": 2,
        **{key.replace("__", "."): value for key, value in changed.items()},
    }
    return load_config("smoke", [f"{key}={value}" for key, value in options.items()])


def problems() -> list[Problem]:
    return digits_problems("train", 10)


@contextmanager
def evolution(config: RunConfig) -> Iterator[Evolution]:
    """The evolution of a fresh process: everything is built anew, the rest comes from the directory."""
    with RunDirectory.create_or_resume(config, resume=True) as run:
        warmup = run.path / "checkpoints" / "warmup"
        if warmup.exists():
            policy = Policy.load(warmup, config, SCHEDULE)
            policy.restore(warmup)
        else:
            model, processor = build_tiny(1)
            policy = Policy(model, processor, config, SCHEDULE)
            # Warmed up: the moments are not those of a fresh optimizer. The clock starts with the evolution.
            examples = [reference_example(problem, policy.encoder) for problem in digits_problems("train", 8, seed=5)]
            policy.trainer.train_epoch(examples, batch_size=BATCH)
            policy.trainer.reset_clock()
            policy.save(warmup)
        yield Evolution(config, run, policy, problems(), digits_problems("validation", 2), Progress())


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    """Parameters and moments, copied."""
    state = {name: value.detach().clone() for name, value in policy.model.named_parameters()}
    for name, parameter in policy.model.named_parameters():
        for key, value in policy.trainer.optimizer.state.get(parameter, {}).items():
            state[f"{name}/{key}"] = value.detach().clone()
    return state


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different


def run_whole(config: RunConfig, iterations: int) -> tuple[dict[str, torch.Tensor], int]:
    with evolution(config) as whole:
        evolve(whole, iterations)
        return weights(whole.policy), whole.policy.trainer.global_step


def recorded_examples(config: RunConfig, iteration: int, encoder: PromptEncoder) -> list[TrainingExample]:
    """What an iteration learned from, by what it left on the disk."""
    if METHODS[config.evolve.method].imitates == "reference":
        chosen = interval(problems(), config.evolve.interval, iteration, config.seed)
        return [reference_example(problem, encoder) for problem in chosen]
    path = Path(config.output_dir) / "rollouts" / f"iteration_{iteration + 1:04d}.parquet"
    return selected_examples(read_rollouts(path, {problem.id: problem for problem in problems()}))


def plain_loop(config: RunConfig, method: Method, iterations: int) -> tuple[dict[str, torch.Tensor], int]:
    """The switches, spelled out on the trainer alone: no loop, no checkpoints of iterations, no sampling."""
    warmup = Path(config.output_dir) / "checkpoints" / "warmup"
    policy = Policy.load(warmup, config, SCHEDULE)
    policy.restore(warmup)
    train = config.train
    for iteration in range(iterations):
        examples = recorded_examples(config, iteration, policy.encoder)
        if method.start == "initial":
            load_weights(policy.model, warmup)
        if not method.inherit_optimizer:
            step = policy.trainer.global_step
            policy.trainer = Trainer(
                policy.model,
                policy.encoder,
                SCHEDULE,
                betas=(train.adam_beta1, train.adam_beta2),
                weight_decay=train.weight_decay,
                max_grad_norm=train.max_grad_norm,
            )
            policy.trainer.global_step = step
        if method.clock == "iteration":
            policy.trainer.global_step = 0
        for epoch in range(train.num_train_epochs):
            policy.trainer.train_epoch(
                examples, batch_size=BATCH, seed=config.seed, epoch=iteration * train.num_train_epochs + epoch
            )
    return weights(policy), policy.trainer.global_step


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_three_switches(method: str, tmp_path: Path) -> None:
    """Bit for bit what a plain loop makes of the same examples, and no other row of switches does."""
    config = config_of(tmp_path / "run", method)
    found, step = run_whole(config, ITERATIONS)
    expected, expected_step = plain_loop(config, METHODS[method], ITERATIONS)
    assert_equal(found, expected)
    assert step == expected_step > 0
    for switch in ("start", "inherit_optimizer", "clock"):
        flipped = replace(METHODS[method], **{switch: OTHER[getattr(METHODS[method], switch)]})
        # ("initial", inherited) is no row of the table: what it would inherit is not defined.
        if (flipped.start, flipped.inherit_optimizer) != ("initial", True):
            changed, _ = plain_loop(config, flipped, ITERATIONS)
            assert any(not torch.equal(found[name], changed[name]) for name in found), switch


def test_the_rows_of_the_table() -> None:
    """Which methods share switches, and which do not."""
    switches = {name: (m.start, m.inherit_optimizer, m.clock) for name, m in METHODS.items()}
    same = {frozenset(pair) for pair in combinations(METHODS, 2) if switches[pair[0]] == switches[pair[1]]}
    assert same == {frozenset({"sft", "continuous"}), frozenset({"star", "rest_em"})}


@pytest.mark.parametrize("method", METHODS)
def test_stopping_after_one_iteration_changes_nothing(method: str, tmp_path: Path) -> None:
    """Two iterations in one process equal one, a new process, and the second: weights, moments, step, next samples."""
    whole, parts = (config_of(tmp_path / name, method) for name in ("whole", "parts"))
    expected, step = run_whole(whole, 2)
    run_whole(parts, 1)
    with evolution(parts) as again:
        assert again.resume() == 1
        again.iterate(1)
        assert_equal(weights(again.policy), expected)
        assert again.policy.trainer.global_step == step
    for name in ("iteration_0002", "validation_0002"):
        paths = [Path(config.output_dir) / "rollouts" / f"{name}.parquet" for config in (whole, parts)]
        assert paths[0].exists() == paths[1].exists() == (method != "sft" or name.startswith("validation"))
        if paths[0].exists():
            tokens = [
                [(g.problem.id, r.sample, r.token_ids.tolist()) for g in read_rollouts(path) for r in g.responses]
                for path in paths
            ]
            assert tokens[0] == tokens[1]


def test_continuous_with_one_iteration_is_plain_sft(tmp_path: Path) -> None:
    """One AdamW, one pass over the same examples, from the same warm-up: nothing of the loop shows in the weights."""
    config = config_of(tmp_path / "run", "continuous", evolve__interval=1.0, train__num_train_epochs=1)
    found, step = run_whole(config, 1)
    warmup = tmp_path / "run" / "checkpoints" / "warmup"
    policy = Policy.load(warmup, config, SCHEDULE)
    policy.restore(warmup)
    examples = recorded_examples(config, 0, policy.encoder)
    assert len(examples) > BATCH
    policy.trainer.train_epoch(examples, batch_size=BATCH, seed=config.seed)
    assert_equal(found, weights(policy))
    assert step == policy.trainer.global_step == -(-len(examples) // BATCH)


def test_sft_imitates_the_references(tmp_path: Path) -> None:
    """Nothing is sampled; the worked response where there is one, else the bare answer; the bare answer is right."""
    config = config_of(tmp_path / "run", "sft")
    with evolution(config) as sft:
        evolve(sft, 1)
        entry = sft.entries[0]
        tokenizer = sft.policy.encoder.tokenizer
        worked = replace(problems()[0], response="red 7\n\n# Answer 7")
        texts = [
            tokenizer.decode(reference_example(problem, sft.policy.encoder).response_ids, skip_special_tokens=True)
            for problem in (worked, problems()[0])
        ]
    assert entry["sampled"] == 0 and entry["kept"] == 4 and entry["loss"] > 0
    assert texts[0] == "red 7\n\n# Answer 7"
    assert answers.judge_text(texts[1], problems()[0].gold).correct
    with pytest.raises(ValueError, match="train-000000"):
        reference_example(replace(problems()[0], gold=None), sft.policy.encoder)
