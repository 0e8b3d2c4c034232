"""Whole runs by the smoke recipe: starting, cutting and comparing them."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import read_rollouts
from mstar_engine.run import main

ROOT = Path(__file__).parent.parent
PATHS = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
TIMED = {"seconds", "sample_seconds", "tokens_per_second", "time"}


def run(directory: Path, *arguments: str) -> int:
    return main(["smoke", f"output_dir={directory}", "threads=1", *arguments])


def outcome(directory: Path) -> dict:
    """Everything a run decides: weights, moments, what was sampled, what was measured; times aside."""
    summary = json.loads((directory / "summary.json").read_text())
    for entry in summary["evolve"]:
        for key in TIMED & set(entry):
            del entry[key]
        if entry["sweep"]:
            del entry["sweep"]["seconds"]
    del summary["seconds"]
    del summary["prm"]["annotation"]  # what it cost: an interruption costs what was in flight
    rollouts = {
        path.name: pq.read_table(path).to_pylist()
        for folder in ("rollouts", "annotations")
        for path in sorted((directory / folder).glob("*.parquet"))
    }
    tensors = {
        f"{name}/{key}": value
        for name in ("prm/model.safetensors", "final/model.safetensors", "final/optimizer.safetensors")
        for key, value in load_file(directory / "checkpoints" / name).items()
    }
    return {"summary": summary, "rollouts": rollouts, "tensors": tensors}


def assert_alike(a: object, b: object) -> None:
    """Equal, floats up to rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_alike(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_alike(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    else:
        assert a == b


def assert_same_outcome(one: Path, other: Path) -> None:
    """Weights and moments bit for bit; tokens and verdicts exactly. A log-probability may differ in its last bits where
    the rest of a phase was sampled in other batches: matrix products round by batch size."""
    a, b = outcome(one), outcome(other)
    assert_alike(a["summary"], b["summary"])
    assert_alike(a["rollouts"], b["rollouts"])
    assert a["tensors"].keys() == b["tensors"].keys()
    for name, tensor in a["tensors"].items():
        assert torch.equal(tensor, b["tensors"][name]), name


def annotations(directory: Path, name: str) -> list[dict]:
    return pq.read_table(directory / "annotations" / f"{name}.parquet").to_pylist()


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, owner: object, method: str, calls: int, error: BaseException
) -> None:
    """Let `method` work `calls` times and then raise."""
    original = getattr(owner, method)
    left = calls

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal left
        if left == 0:
            raise error
        left -= 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, wrapped)


def read_ids(directory: Path, name: str) -> set[str]:
    return {group.problem.id for group in read_rollouts(directory / "rollouts" / f"{name}.parquet")}


def sampling_log(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """Problem ids that the engine samples for training from here on, by iteration."""
    seen: dict[int, set[str]] = {}
    original = RolloutEngine.generate_batches

    def logged(self, problems, params, **options):
        if not options and problems:
            seen.setdefault(params.seed, set()).update(problem.id for problem in problems)
        return original(self, problems, params, **options)

    monkeypatch.setattr(RolloutEngine, "generate_batches", logged)
    return seen
