"""A warm-up that samples with the answers in the prompt: what it keeps, learns from, survives and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hinted_tiny import REFUSED, sampled_config, sampled_overrides, teach
from safetensors.torch import load_file

from mstar_engine.data.sources import load_data
from mstar_engine.evolve.policy import Policy
from mstar_engine.evolve.sieve import GIVEN_AWAY, KEPT, REPEATED, SURPLUS, TOO_SHORT
from mstar_engine.evolve.warmup import Warmup, sifted, warmup_seed
from mstar_engine.journal import read_events
from mstar_engine.models.loading import load_model
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.report.html import build_report
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.metrics import place_metrics
from mstar_engine.rollout_file import RolloutWriter, read_rollouts
from mstar_engine.run import main
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import read_summary
from mstar_engine.train.schedule import schedule_of
from mstar_engine.train.trainer import Trainer
from mstar_engine.types import TrainingExample


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return teach(tmp_path_factory.mktemp("hinted") / "taught")


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("warmup") / "run"
    assert main(["smoke", *sampled_overrides(directory, checkpoint)]) == 0
    return directory


def examples_of(directory: Path, checkpoint: Path, *more: str) -> tuple[list[TrainingExample], Policy]:
    """What the warm-up of a directory learns from, as its sampling gives it, and a policy as it began with."""
    config = sampled_config(directory, checkpoint, *more)
    policy = Policy.load(checkpoint, config, schedule_of(1e-3, "constant", 0, 1))
    with RunDirectory.create_or_resume(config, resume=True) as run:
        return Warmup(config, run, load_data(config.data, config.seed), Progress()).sample(policy), policy


def same(one: list[TrainingExample], other: list[TrainingExample]) -> bool:
    return [(e.problem.id, e.response_ids.tolist()) for e in one] == [
        (e.problem.id, e.response_ids.tolist()) for e in other
    ]


def test_the_funnel(finished, checkpoint):
    """Every number that is reported is that of the rows on disk; all that is kept is right, and no two are alike."""
    rows = pq.read_table(finished / "rollouts" / "warmup_0000.parquet").to_pylist()
    sift = read_summary(finished / "summary.json").warmup.sift
    assert (sift.problems, sift.sampled, sift.without_gold) == (16, 64, 0) and len(rows) == 64
    kept = [row for row in rows if row["selected"]]
    assert 0 < len(kept) == sift.kept == sift.fates[KEPT]
    assert all(row["correct"] and row["finish_reason"] == "stop" for row in kept)
    assert sift.right == sum(row["correct"] for row in rows) > sift.kept
    assert sum(sift.fates.values()) == sift.sampled
    assert sift.right == sum(sift.fates.get(fate, 0) for fate in (GIVEN_AWAY, TOO_SHORT, REPEATED, SURPLUS, KEPT))
    assert sift.fates[GIVEN_AWAY] == sum(row["correct"] and REFUSED in row["text"] for row in rows) > 0
    assert not any(REFUSED in row["text"] or row["text"].startswith("#") for row in kept)
    by_problem = [[row["text"].strip() for row in kept if row["problem_id"] == name] for name in {
        row["problem_id"] for row in kept
    }]  # fmt: skip
    assert len(by_problem) == sift.solved and all(len(set(texts)) == len(texts) <= 2 for texts in by_problem)
    events = read_events(finished / "journal.jsonl")
    (event,) = [event for event in events if event["event"] == "warmup_samples"]
    assert event["kept"] == sift.kept and event["tokens_per_second"] > 0
    tracked = place_metrics(json.loads((finished / "summary.json").read_text())["warmup"])
    assert tracked["rollout/warmup/kept"] == sift.kept
    text = build_report(finished)
    assert "What the warm-up learned from" in text and "given away" in text


def test_it_learns_without_the_hint(finished, checkpoint):
    """The examples are of the problems themselves, put as everything after puts them; and these are what it learned."""
    examples, policy = examples_of(finished, checkpoint)
    config = sampled_config(finished, checkpoint)
    data = {problem.id: problem for problem in load_data(config.data, 0).train}
    plain, tokenizer = PromptEncoder(policy.processor), policy.processor.tokenizer
    hinted = {group.problem.id: group.prompt_length for group in read_rollouts(_rollouts(finished))}
    for example in examples:
        prompt = policy.encoder.encode(example.problem).input_ids
        assert torch.equal(prompt, plain.encode(data[example.problem.id]).input_ids)
        assert f"= {data[example.problem.id].gold}" not in tokenizer.decode(prompt)
        assert len(prompt) < hinted[example.problem.id]  # it was drawn with the answer there
        assert example.response_ids[-1] == tokenizer.eos_token_id
    # Nothing else was learned: the same examples on a trainer of their own give the same weights.
    warmup = config.warmup
    schedule = schedule_of(warmup.learning_rate, warmup.lr_scheduler_type, warmup.warmup_steps, warmup.max_steps)
    train = config.train
    trainer = Trainer(
        policy.model, plain, schedule, betas=(train.adam_beta1, train.adam_beta2), max_grad_norm=train.max_grad_norm
    )
    torch.set_num_threads(1)
    trainer.train_epoch(examples, batch_size=8, max_steps=2)
    assert trainer.global_step == 2
    stored = dict(load_model(finished / "checkpoints" / "warmup")[0].named_parameters())
    assert all(torch.equal(stored[name], learned) for name, learned in policy.model.named_parameters())


def _rollouts(directory: Path) -> Path:
    return directory / "rollouts" / "warmup_0000.parquet"


@pytest.mark.parametrize(("owner", "name", "calls"), [(RolloutWriter, "write", 2), (Trainer, "step", 1)])
def test_an_interrupted_warm_up_goes_on(finished, checkpoint, tmp_path, monkeypatch, owner, name, calls):
    original, left = getattr(owner, name), [calls]

    def interrupted(self, *arguments, **named):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(self, *arguments, **named)

    command = ["smoke", *sampled_overrides(tmp_path / "run", checkpoint)]
    monkeypatch.setattr(owner, name, interrupted)
    assert main(command) == 130
    monkeypatch.undo()
    drawn = [0]

    def counted(self, *groups):
        drawn[0] += len(groups) if self.path.stem.startswith("warmup") else 0
        return write(self, *groups)

    write = RolloutWriter.write
    monkeypatch.setattr(RolloutWriter, "write", counted)
    assert main([*command, "--resume"]) == 0
    assert drawn[0] < 16 and (drawn[0] == 0) == (owner is Trainer)
    one, other = (pq.read_table(_rollouts(path)).to_pylist() for path in (finished, tmp_path / "run"))
    for key in ("problem_id", "sample", "token_ids", "correct", "selected"):
        assert [row[key] for row in one] == [row[key] for row in other]
    summaries = [json.loads((path / "summary.json").read_text()) for path in (finished, tmp_path / "run")]
    assert summaries[0]["warmup"] == summaries[1]["warmup"]
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(path / "checkpoints" / "warmup" / file) for path in (finished, tmp_path / "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_fewer_problems_and_examples(finished, checkpoint, tmp_path):
    """A draw of either, which depends on the seed and not on what else is drawn."""
    whole, _ = examples_of(finished, checkpoint)
    more = ("warmup.problems=12", "warmup.max_examples=5")
    few, _ = examples_of(tmp_path / "few", checkpoint, *more)
    again, _ = examples_of(tmp_path / "few", checkpoint, *more)
    assert len(few) == 5 and same(few, again)
    named = {(e.problem.id, tuple(e.response_ids.tolist())) for e in whole}
    assert {(e.problem.id, tuple(e.response_ids.tolist())) for e in few} < named
    config = sampled_config(tmp_path / "few", checkpoint, *more)
    with RunDirectory.create_or_resume(config, resume=True) as run:
        sift = sifted(run.journal)
    assert sift["problems"] == 12 and sift["kept"] == sift["fates"][KEPT] == 5 and sift["fates"][SURPLUS] > 0
    assert sum(sift["fates"].values()) == sift["sampled"] == 48


def test_nothing_to_learn_from_is_an_error(checkpoint, tmp_path, capsys):
    """With counts by reason, a response, and what to change; no checkpoint, and the same words again on resuming."""
    command = ["smoke", *sampled_overrides(tmp_path / "run", checkpoint, "warmup.min_steps=9", "data.train_problems=6")]
    errors = []
    for more in ([], ["--resume"]):
        assert main([*command, *more]) == 1
        errors.append(capsys.readouterr().err.splitlines()[-1])
    assert errors[0] == errors[1]
    assert "none of 24 responses to 6 problems is fit to imitate" in errors[0] and TOO_SHORT in errors[0]
    assert "warmup.prompt" in errors[0] and "problem 'train-" in errors[0]
    assert not (tmp_path / "run" / "checkpoints" / "warmup").exists()


def test_problems_without_an_answer_are_left_out_and_counted(finished, checkpoint, tmp_path):
    config = sampled_config(tmp_path / "run", checkpoint)
    data = load_data(config.data, 0)
    train = [replace(problem, gold=None) if i % 4 else problem for i, problem in enumerate(data.train)]
    policy = Policy.load(checkpoint, config, schedule_of(1e-3, "constant", 0, 1))
    with RunDirectory.create_or_resume(config) as run:
        found = Warmup(config, run, replace(data, train=train), Progress()).sample(policy)
        assert sifted(run.journal)["without_gold"] == 12 and sifted(run.journal)["problems"] == 4
        whole = examples_of(finished, checkpoint)[0]
        assert same(found, [e for e in whole if e.problem.id in {p.id for p in train[::4]}])
    nobody = replace(data, train=[replace(problem, gold=" ") for problem in data.train])
    with (
        RunDirectory.create_or_resume(sampled_config(tmp_path / "none", checkpoint)) as run,
        pytest.raises(ValueError, match="no training problem has a reference answer"),
    ):
        Warmup(config, run, nobody, Progress()).sample(policy)


def test_a_prompt_that_leaves_no_positions_is_refused_before_sampling(checkpoint, tmp_path, capsys):
    long = "warmup.prompt=" + "Think! " * 70 + "{question} {answer}"
    assert main(["smoke", *sampled_overrides(tmp_path / "run", checkpoint, long)]) == 1
    assert "warmup.prompt: problem 'train-" in capsys.readouterr().err
    assert not _rollouts(tmp_path / "run").exists()


def test_batches_accumulate(checkpoint, tmp_path):
    """A batch in parts is the batch; the epochs count batches."""
    found = []
    for size, parts in ((8, 1), (4, 2)):
        more = (f"warmup.per_device_train_batch_size={size}", f"warmup.gradient_accumulation_steps={parts}")
        config = sampled_config(tmp_path / f"{size}", checkpoint, "warmup.max_steps=-1", *more)
        config = replace(config, warmup=replace(config.warmup, source="demonstrations"))
        policy = Policy.load(checkpoint, config, schedule_of(1e-3, "constant", 0, 1))
        data, steps, forwards = load_data(config.data, 0), [], []
        policy.model.register_forward_pre_hook(lambda *_, seen=forwards: seen.append(1))
        with RunDirectory.create_or_resume(config) as run:
            Warmup(config, run, data, Progress(), steps.append).train(policy)
        assert len(steps) == len(data.warmup) // 8 and policy.trainer.global_step == 0
        assert sum(forwards) == parts * len(steps) and sifted(run.journal) is None
        found.append([(step.loss, step.grad_norm, step.tokens, step.learning_rate) for step in steps])
    assert found[0] == [pytest.approx(step, rel=1e-3) for step in found[1]]


def test_a_dry_run_says_what_would_be_sampled(checkpoint, tmp_path, capsys):
    more = ("warmup.problems=12", "warmup.max_examples=20")
    assert main(["smoke", *sampled_overrides(tmp_path / "run", checkpoint, *more), "--dry_run"]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[1]: line for line in said.splitlines() if line.startswith("  warmup: ")}
    assert (
        "<= 48 " in lines["warmup: sample"] and "12 problems x 4, the answer in the prompt" in lines["warmup: sample"]
    )
    assert "train, answers shown" in said and "  warmup: sample " in said.split("memory at most")[1].split("work")[0]
    assert not (tmp_path / "run").exists()


def test_seeds_lie_apart():
    assert len({warmup_seed(seed) for seed in range(100)}) == 100
    assert warmup_seed(0) > 2**42 + 100 * 1_000_003
