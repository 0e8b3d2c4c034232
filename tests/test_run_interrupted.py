"""The command line end to end, interrupted at every kind of place, and on a full disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import (
    PATHS,
    ROOT,
    assert_same_outcome,
    interrupt_after,
    outcome,
    read_ids,
    run,
    sampling_log,
)

from mstar_engine.evolve import loop, pipeline, process_reward
from mstar_engine.evolve.evaluate import Evaluation
from mstar_engine.evolve.pipeline import Pipeline
from mstar_engine.evolve.sweep import Sweep
from mstar_engine.journal import read_events
from mstar_engine.reward.label_file import LabelWriter
from mstar_engine.rollout_file import RolloutWriter
from mstar_engine.table_file import TableWriter
from mstar_engine.train.trainer import Trainer

INTERRUPTIONS = {
    "before the policy is warm": [
        ("pretraining", "pretrain", Trainer, "step", 1),
        ("warm-up", "warmup", Trainer, "step", 3),
        ("rollouts of the warm-up's measurement", "warmup", RolloutWriter, "write", 1),
        ("measuring the warm-up", "warmup", Pipeline, "_measure", 1),
        ("between two measurements", "warmup", RolloutWriter, "finish", 1),
    ],
    "before there is a process reward model": [
        ("solutions to label", "annotate", RolloutWriter, "finish", 3),
        ("labelling steps", "annotate", LabelWriter, "write", 1),
        ("between the two label files", "annotate", LabelWriter, "finish", 1),
        ("fitting the process reward model", "prm", Trainer, "step", 1),
        ("judging the process reward model", "prm", process_reward, "step_quality", 0),
        ("before the process reward model's journal entry", "prm", process_reward.ProcessReward, "fitted", 0),
    ],
    "while it evolves": [
        ("sweeping temperatures", "evolve", Sweep, "_keep", 1),
        ("between a sweep and its choice", "evolve", TableWriter, "finish", 0),
        ("between a choice of temperature and rollouts", "evolve", loop.Evolution, "_generate", 0),
        ("between rollouts and training", "evolve", loop.Evolution, "_improve", 0),
        ("measuring the second iteration", "evolve", loop, "measure_policy", 1),
        ("final measurement", "evaluate", Evaluation, "_measure", 1),
        ("between the final measurement and its journal entry", "evaluate", pipeline, "final_of", 0),
    ],
}
"""Places of one run after another, by their stage: each sitting ends there, behind so many calls that went well."""


def test_resuming_a_finished_run_does_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outcome(finished)
    journal = (finished / "journal.jsonl").read_text().count('"iteration"')
    assert run(finished, "--resume") == 0
    assert "report" in capsys.readouterr().out
    assert (finished / "journal.jsonl").read_text().count('"iteration"') == journal
    assert outcome(finished)["summary"] == before["summary"]


@pytest.mark.parametrize("when", INTERRUPTIONS)
def test_interrupted_equals_uninterrupted(
    when: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, kept = tmp_path / "cut", {}
    for place, stage, owner, method, calls in INTERRUPTIONS[when]:
        with monkeypatch.context() as patch:
            sampled = sampling_log(patch)
            interrupt_after(patch, owner, method, calls, KeyboardInterrupt())
            assert run(cut, "--resume") == 130, place
        assert_none_again(kept, sampled, place)
        kept = {name: read_ids(cut, name) for name in ("iteration_0001", "iteration_0002")}
        assert [one["stage"] for one in read_events(cut / "journal.jsonl") if one.get("state") == "stopped"][
            -1
        ] == stage
    sampled = sampling_log(monkeypatch)
    assert run(cut, "--resume") == 0
    assert_none_again(kept, sampled, "the end")
    assert_same_outcome(finished, cut)


def assert_none_again(kept: dict[str, set[str]], sampled: dict[int, set[str]], place: str) -> None:
    for name, ids in kept.items():
        again = sampled.get(int(name[-4:]), set()) & ids
        assert not again, f"sampled again on the way to {place}: {again}"


@pytest.mark.parametrize("controller", ["racing", "continuous"])
def test_a_controllers_memory_survives_interruptions(controller: str, tmp_path: Path, lenient, monkeypatch) -> None:
    """A choice before every iteration, each depending on the earlier ones; cut in a sweep, behind it, between the
    rounds of one, and in measuring."""
    changes = [
        f"temperature.controller={controller}", "temperature.every=1", "temperature.problems=0",
        "temperature.budget=1.0", "evolve.iterations=3",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, *changes) == 0
    places = [(Sweep, "_keep", 1), (loop.Evolution, "_improve", 0), (Sweep, "_values", 1), (loop, "measure_policy", 0)]
    for owner, method, calls in places:
        with monkeypatch.context() as patch:
            interrupt_after(patch, owner, method, calls, KeyboardInterrupt())
            assert run(cut, *changes, "--resume") == 130
    assert run(cut, *changes, "--resume") == 0
    assert_same_outcome(whole, cut)
    entries = json.loads((whole / "summary.json").read_text())["evolve"]
    assert [entry["sweep"]["present"] for entry in entries] == [1.0, *(e["temperature"] for e in entries[:-1])]
    assert all(entry["sweep"]["drawn"] <= 8 * 3 * 4 and entry["sweep"]["model"] for entry in entries)


def test_disk_full_keeps_what_was_finished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    full = OSError(28, "No space left on device", "rollouts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, RolloutWriter, "write", 2, full)
        assert run(tmp_path / "full") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert run(tmp_path / "full", "--resume") == 0
    assert_same_outcome(finished, tmp_path / "full")


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file size limit of the process stands for the disk: a real short write in the middle of a checkpoint."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mstar_engine.run import main; import mstar_engine.evolve.session;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"sys.exit(main(['smoke', 'output_dir={tmp_path / 'full'}', 'threads=1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "earlier ones are intact" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "full" / "checkpoints").glob("*.part"))


def test_crash_between_checkpoint_and_journal(finished: Path, tmp_path: Path) -> None:
    """The journal ends behind the first iteration's checkpoint: that iteration is measured, not trained, again."""
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    lines = (cut / "journal.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"event":"iteration"' in line)
    (cut / "journal.jsonl").write_text("".join(lines[:first]))
    for name in ("checkpoints/iteration_0002", "checkpoints/final"):
        shutil.rmtree(cut / name)
    for path in cut.glob("rollouts/*_0002.parquet"):
        path.unlink()
    assert run(cut, "--resume") == 0
    assert_same_outcome(finished, cut)
    assert run(cut, "--resume") == 0
    assert_same_outcome(finished, cut)


def test_full_disk_while_saving_a_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from mstar_engine.train import checkpoint

    with monkeypatch.context() as patch:
        interrupt_after(patch, checkpoint, "save_file", 2, OSError(28, "No space left on device"))
        assert run(tmp_path / "full") == 1
    assert "earlier ones are intact" in capsys.readouterr().err
    assert run(tmp_path / "full", "--resume") == 0
    assert_same_outcome(finished, tmp_path / "full")
