"""Whole runs with trackers: a run outlives them, and nothing that was done is told again."""

import json
from pathlib import Path

import pytest
import torch
from tracked import Broken, scalars

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.ablation import fork_run
from mstar_engine.journal import read_events
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.trackers import TRACKERS, Trackers
from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.run import main
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.trainer import Trainer


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def smoke(directory: Path, *arguments: str) -> int:
    return main(["smoke", f"output_dir={directory}", "threads=1", *arguments])


def metrics_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "trackers" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_outlives_its_trackers(tmp_path, monkeypatch, capsys) -> None:
    """Trackers that raise in start, in log and in finish: the run ends well, and the one that works has it all."""
    for name, place in (("wandb", "start"), ("tensorboard", "log"), ("trackio", "finish")):
        monkeypatch.setitem(TRACKERS, name, lambda place=place: Broken(place, RuntimeError(f"in {place}")))
    assert smoke(tmp_path / "run", "report_to=[wandb,jsonl,tensorboard,trackio]") == 0
    said = capsys.readouterr().err
    events = [event for event in read_events(tmp_path / "run" / "journal.jsonl") if event["event"] == "tracker"]
    expected = {"wandb": "in start", "tensorboard": "in log", "trackio": "in finish"}
    assert {event["name"]: event["reason"] for event in events} == {
        name: f"RuntimeError: {why}" for name, why in expected.items()
    }
    assert [said.count(f"tracker {name} is off") for name in expected] == [1, 1, 1]
    rows = metrics_of(tmp_path / "run")
    assert [row["iteration"] for row in rows if "iteration" in row] == [0, 0, 1, 2, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    measured = {row["iteration"]: row for row in rows if "rollout/kept" in row}
    for entry in summary["evolve"]:
        assert measured[entry["iteration"]]["validation/greedy"] == entry["greedy"]["value"]
        assert measured[entry["iteration"]]["validation/greedy_high"] == entry["greedy"]["high"]
        assert measured[entry["iteration"]]["rollout/temperature"] == entry["temperature"]
    assert rows[-1]["test/greedy"] == summary["final"]["greedy"]["value"]
    # A run that is complete has nothing more to tell.
    assert smoke(tmp_path / "run", "--resume", "report_to=[wandb,jsonl]") == 0
    assert metrics_of(tmp_path / "run") == rows and "tracker wandb" not in capsys.readouterr().err


def test_nothing_is_told_twice_and_steps_number_on(tmp_path, monkeypatch) -> None:
    """A run that is cut in the second iteration's training and resumed, with a further tracker: what was done is not
    told again, the step that is redone has its old number and loss; steps count on over a clock that starts again."""

    def lenient(response, gold: str) -> Verdict:
        return Verdict(True, response.text, "any")

    for module in (answers, annotate):
        monkeypatch.setattr(module, "judge_response", lenient)
    original, taken = Trainer.step, []

    def step(self, *arguments):
        if self.objective.__class__.__name__ == "Likelihood":
            taken.append(self.global_step)
            if len(taken) == cut_at:
                raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    changes = (
        "evolve.method=iterative_rft",
        "select.kind=random",
        "select.k=1",
        "stages=[pretrain,warmup,evolve]",
        "temperature.controller=fixed",
    )
    changes += ("train.per_device_train_batch_size=4", "train.num_train_epochs=1")
    # Steps before the cut: 2 of pretraining, 2 of the warm-up, 2 of the first iteration, 1 of the second.
    cut_at = 8
    assert smoke(tmp_path / "run", *changes, "report_to=[jsonl]") == 130
    cut_at = 0
    assert smoke(tmp_path / "run", *changes, "report_to=[jsonl,tensorboard]", "--resume") == 0
    rows = metrics_of(tmp_path / "run")
    assert [row["warmup/global_step"] for row in rows if "warmup/loss" in row] == [1, 2]
    assert [row["iteration"] for row in rows if "iteration" in row] == [0, 1, 2]
    steps = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [number for number, _ in steps] == [1, 2, 3, 3, 4]
    assert steps[2] == steps[3] and all(loss > 0 for _, loss in steps)
    seen = scalars(tmp_path / "run" / "trackers" / "tensorboard")
    assert [step for step, _ in seen["train/loss"]] == [3, 4]
    assert [step for step, _ in seen["validation/greedy"]] == [2]


def test_a_fork_of_a_run_is_a_run_of_its_own_to_trackers(tmp_path: Path) -> None:
    """Neither the other's id nor its database, which a hard link would let both write."""
    config = load_config(None, [f"output_dir={tmp_path / 'one'}", "report_to=[jsonl]"])
    with RunDirectory.create_or_resume(config) as run, Trackers(config, run, Progress()) as trackers:
        trackers.iteration({"iteration": 1, "kept": 2})
    (tmp_path / "one" / "trackers" / "wandb_id").write_text("12345678\n")
    fork_run(tmp_path / "one", tmp_path / "two", config)
    assert (tmp_path / "two" / "journal.jsonl").exists() and not (tmp_path / "two" / "trackers").exists()
