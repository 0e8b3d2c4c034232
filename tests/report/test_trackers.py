"""What trackers are told, and what the real packages hold of it afterwards, offline and over two sittings."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tracked import GREEDY, ROOT, scalars

from mstar_engine.report.trackers.jsonl import JsonlTracker
from mstar_engine.report.trackers.metrics import entry_metrics, flat, place_metrics
from mstar_engine.report.trackers.tensorboard import TensorboardTracker
from mstar_engine.types import Estimate

# What is logged


def test_an_entry_becomes_named_finite_numbers() -> None:
    entry = {
        "iteration": 3,
        "kept": 7,
        "temperature": np.float32(0.5),
        "loss": float("nan"),
        "entropy": None,
        "seconds": float("inf"),
        "global_step": 12,
        "greedy": GREEDY,
        "verifier": {"8": {"majority": {**GREEDY, "low": None}}},
        "dynamics": {"pass_at_k": Estimate(value=1.0, items=2, low=0.5, high=1.0)},
        "sweep": {
            "controller": "racing",
            "chosen": 0.7,
            "temperatures": [0.3, 0.7],
            "values": [GREEDY, {**GREEDY, "value": 0.6}],
            "model": {"temperatures": [0.35, 0.4], "mean": [0.1, float("nan")], "low": [0.0]},
        },
        "pseudo": {"problems": 4, "accuracy": None},
        "note": {"deep": {"er": {"number": 10**400, "text": "1", "yes": True, "list": [1, 2], "value": 5}}},
    }
    greedy = {"": 0.5, "_low": 0.25, "_high": 0.75}
    assert entry_metrics(entry) == {
        "rollout/kept": 7.0,
        "rollout/temperature": 0.5,
        "iteration/global_step": 12.0,
        **{f"validation/greedy{part}": value for part, value in greedy.items()},
        "validation/verifier/8/majority": 0.5,
        "validation/verifier/8/majority_high": 0.75,
        "dynamics/pass_at_k": 1.0,
        "dynamics/pass_at_k_low": 0.5,
        "dynamics/pass_at_k_high": 1.0,
        "sweep/chosen": 0.7,
        **{f"sweep/values/at_0.3{part}": value for part, value in greedy.items()},
        **{f"sweep/values/at_0.7{part}": value for part, value in {**greedy, "": 0.6}.items()},
        "sweep/model/mean/at_0.35": 0.1,
        "pseudo/problems": 4.0,
        "iteration/note/deep/er/value": 5.0,
    }


def test_accuracies_before_and_after_are_points_of_the_same_curves() -> None:
    estimate = Estimate(value=0.5, items=8, low=0.25, high=0.75)
    before = place_metrics({"greedy": estimate, "ood_greedy": GREEDY, "validation_greedy": GREEDY, "pass_at_k": None})
    assert {"test/greedy", "ood/greedy", "validation/greedy"} <= before.keys() and len(before) == 9
    assert flat("x", "nan") == flat("x", None) == flat("x", torch.ones(2)) == {}


# Where it goes: the real packages, read back


def log_sitting(tracker, directory: Path, iteration: int) -> None:
    tracker.start("digits", {"rollout.n": 4, "stages": ["evolve", "a|b"], "select.alpha": None}, directory)
    for step in (2 * iteration - 1, 2 * iteration):
        tracker.log("train/global_step", step, {"train/loss": 1 / step})
    tracker.log("iteration", iteration, {"validation/greedy": 0.25 * iteration})
    tracker.finish()


def test_jsonl_appends_and_cuts_a_torn_line(tmp_path: Path) -> None:
    log_sitting(JsonlTracker(), tmp_path / "trackers", 1)
    path = tmp_path / "trackers" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time":1,"iteration":9')
    log_sitting(JsonlTracker(), tmp_path / "trackers", 2)
    assert path.read_bytes().startswith(whole)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.pop("time") > 1e9 for row in rows] == [True] * 6
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert rows[2] == {"iteration": 1, "validation/greedy": 0.25}
    assert rows[5] == {"iteration": 2, "validation/greedy": 0.5}


def test_tensorboard_files_hold_both_sittings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for iteration in (1, 2):
        log_sitting(TensorboardTracker(), tmp_path, iteration)
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)],
        "validation/greedy": [(1, 0.25), (2, 0.5)],
    }
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b"rollout.n | 4" in text.tensor_proto.string_val[0]


SITTINGS = """
import sys
from pathlib import Path
from mstar_engine.report.trackers.guarded import Guarded
from mstar_engine.report.trackers.trackers import TRACKERS

def call(*arguments):
    reason = tracker.call(arguments[0], 60.0, *arguments[1:])
    if reason is not None:
        sys.exit(reason)

for iteration in map(int, sys.argv[3:]):
    tracker = Guarded(TRACKERS[sys.argv[1]])
    call("start", "digits", {"rollout.n": 4, "select.alpha": None, "stages": ["evolve"]}, Path(sys.argv[2]))
    for step in (2 * iteration - 1, 2 * iteration):
        call("log", "train/global_step", step, {"train/loss": 1 / step})
    call("log", "iteration", iteration, {"validation/greedy": 0.25 * iteration})
    call("finish")
    tracker.close()
"""


def sittings(name: str, directory: Path, *iterations: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """The sittings of `log_sitting` in a process of their own: these packages keep state and hooks in theirs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "HF_"))}
    # A home of its own: no key, no settings of whoever runs the tests.
    home = directory.parent / "home"
    home.mkdir(exist_ok=True)
    paths = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    kept |= {"PYTHONPATH": paths, "HOME": str(home), "HF_HUB_OFFLINE": "1", "WANDB_ERROR_REPORTING": "false"}
    return subprocess.run(
        [sys.executable, "-c", SITTINGS, name, str(directory), *map(str, iterations)],
        cwd=directory.parent,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def wandb_records(path: Path) -> list:
    """The records of an offline run: a log in LevelDB's format, of blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": "offline", "WANDB_PROJECT": "mine"}])
def test_wandb_offline_holds_the_history(tmp_path: Path, environment: dict[str, str]) -> None:
    """Without a key and a mode it is offline by itself and asks nothing; two sittings are one run."""
    pytest.importorskip("wandb")
    done = sittings("wandb", tmp_path / "trackers", 1, 2, **environment)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    identity = (tmp_path / "trackers" / "wandb_id").read_text().strip()
    assert {file.stem for file in files} == {f"run-{identity}"}
    records = [record for file in files for record in wandb_records(file)]
    kinds = [record.WhichOneof("record_type") for record in records]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.project for run in runs} == {environment.get("WANDB_PROJECT", "mstar_engine")}
    assert {run.display_name for run in runs} == {"digits"}
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record, kind in zip(records, kinds)
        if kind == "history"
    ]
    losses = {row["train/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == {step: pytest.approx(1 / step) for step in (1, 2, 3, 4)}
    assert {row["iteration"]: row["validation/greedy"] for row in history if "iteration" in row} == {1: 0.25, 2: 0.5}
    axes = {r.metric.glob_name: r.metric.step_metric for r, kind in zip(records, kinds) if kind == "metric"}
    assert axes["train/*"] == "train/global_step" and axes["validation/*"] == "iteration"


def test_wandb_online_without_a_key_is_refused_and_never_asks(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = sittings("wandb", tmp_path / "trackers", 1, WANDB_MODE="online")
    assert done.returncode == 1 and "no API key is configured" in done.stderr


def test_trackio_database_holds_one_run_of_both_sittings(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    done = sittings("trackio", tmp_path / "trackers", 1, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and f"TRACKIO_DIR={tmp_path}/trackers/trackio trackio show" in done.stderr
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s;"
        "(run,) = s.get_runs('mstar_engine'); name = run['name'] if isinstance(run, dict) else run;"
        "print(json.dumps([name, s.get_logs('mstar_engine', name)], default=str))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackers" / "trackio")}
    read = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    name, rows = json.loads(read.stdout)
    assert name == (tmp_path / "trackers" / "trackio_name").read_text().strip() and name.startswith("digits-")
    losses = {row["train/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {step: pytest.approx(1 / step) for step in (1, 2, 3, 4)}
    assert {row["step"]: row["validation/greedy"] for row in rows if "iteration" in row} == {1: 0.25, 2: 0.5}
