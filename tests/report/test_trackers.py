"""Trackers: what the real packages hold afterwards, offline; no failure stops a run; nothing is told twice."""

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mstar_engine.config_parse import load_config
from mstar_engine.journal import read_events
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.guarded import Guarded, reason
from mstar_engine.report.trackers.jsonl import JsonlTracker
from mstar_engine.report.trackers.metrics import entry_metrics, flat, place_metrics
from mstar_engine.report.trackers.tensorboard import TensorboardTracker
from mstar_engine.report.trackers.trackers import PATIENCE, TRACKERS, Trackers
from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.run import main
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.trainer import StepStats, Trainer
from mstar_engine.types import Estimate

ROOT = Path(__file__).parent.parent.parent
STEP = StepStats(step=4, loss=0.25, tokens=10, grad_norm=1.5, learning_rate=1e-3)
GREEDY = {"value": 0.5, "low": 0.25, "high": 0.75, "items": 8}


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


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


# What may go wrong


class Broken:
    """A tracker that raises where it is told to."""

    package = ""

    def __init__(self, place: str, error: BaseException) -> None:
        self.place, self.error, self.calls = place, error, []

    def start(self, run, config, directory) -> None:
        self._reach("start")

    def log(self, axis, step, values) -> None:
        self._reach("log")

    def finish(self) -> None:
        self._reach("finish")

    def _reach(self, place: str) -> None:
        self.calls.append(place)
        if place == self.place:
            raise self.error


class Unspeakable(Exception):
    """An exception that cannot even be put into words."""

    def __str__(self) -> str:
        raise RuntimeError


def told(tmp_path: Path, names: str) -> tuple[list[dict], list[dict]]:
    """A sitting with the trackers `names`: the journal's "tracker" events, and the lines of metrics.jsonl."""
    config = load_config(None, [f"output_dir={tmp_path / 'run'}", f"report_to=[{names}]"])
    with RunDirectory.create_or_resume(config, resume=True) as run:
        with Trackers(config, run, Progress()) as trackers:
            trackers.step("train", 5, STEP)
            trackers.iteration({"iteration": 1, "greedy": GREEDY, "loss": None})
        events = [event for event in run.journal.events if event["event"] == "tracker"]
    path = tmp_path / "run" / "trackers" / "metrics.jsonl"
    return events, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("place", ["start", "log", "finish"])
@pytest.mark.parametrize(
    "error",
    [
        OSError("two\nlines"),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        Unspeakable(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys, place, error) -> None:
    broken = Broken(place, error)
    monkeypatch.setitem(TRACKERS, "wandb", lambda: broken)
    events, lines = told(tmp_path, "wandb, jsonl")
    assert broken.calls[-1] == place and broken.calls.count(place) == 1
    assert [event["name"] for event in events] == ["wandb"]
    assert events[0]["reason"].startswith(type(error).__name__) and "\n" not in events[0]["reason"]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"tracker wandb is off: {events[0]['reason']}; the run goes on without it"]
    assert [set(line) & {"train/loss", "validation/greedy"} for line in lines] == [
        {"train/loss"},
        {"validation/greedy"},
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python does for "not to be found"
    for module in [module for module in sys.modules if module.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    events, lines = told(tmp_path, f"{name}, jsonl")
    assert [event["reason"] for event in events] == [f"{name} is not installed: pip install {name}"]
    assert f"pip install {name}" in capsys.readouterr().err and len(lines) == 2


def test_a_folder_that_cannot_be_written_is_the_trackers_problem(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trackers").write_text("in the way")
    events, _ = told(tmp_path, "jsonl, tensorboard")
    assert [event["name"] for event in events] == ["jsonl", "tensorboard"]


@pytest.mark.parametrize("place", ["start", "log", "finish"])
def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch, place: str) -> None:
    release = threading.Event()

    class Hanging(Broken):
        def _reach(self, there: str) -> None:
            self.calls.append(there)
            if there == self.place:
                release.wait()

    hanging = Hanging(place, ValueError())
    monkeypatch.setitem(TRACKERS, "wandb", lambda: hanging)
    monkeypatch.setitem(PATIENCE, place, 0.05)
    events, _ = told(tmp_path, "wandb")
    release.set()
    assert [event["reason"] for event in events] == [f"{place} has not returned within 0.05 seconds"]
    assert hanging.calls[-1] == place


def test_an_interrupt_of_the_run_passes_through(monkeypatch) -> None:
    """Ctrl-C while a tracker works is the user's."""
    import _thread

    started, release = threading.Event(), threading.Event()

    class Slow(Broken):
        def start(self, run, config, directory) -> None:
            started.set()
            _thread.interrupt_main()
            release.wait()

    guarded = Guarded(lambda: Slow("", ValueError()))
    with pytest.raises(KeyboardInterrupt):
        guarded.call("start", 60.0, "run", {}, Path())
    release.set()
    guarded.close()
    assert started.is_set()


def test_a_reason_is_one_short_printable_line() -> None:
    line = reason(ValueError("a\n\tb \ud800 \x1b[0m" + "x" * 1000), "wandb")
    assert line.startswith("ValueError: a b ? ?[0mxx") and len(line) == 240
    assert reason(ModuleNotFoundError("no", name="numpy.core"), "wandb") == "ModuleNotFoundError: no"


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    """No library is imported, no folder made, no thread started."""
    code = (
        "import sys, threading; import mstar_engine.evolve.session; from pathlib import Path;"
        "from mstar_engine.config_parse import load_config; from mstar_engine.run_directory import RunDirectory;"
        "from mstar_engine.report.progress import Progress; from mstar_engine.report.trackers.trackers import Trackers;"
        "config = load_config(None, ['output_dir=run']); run = RunDirectory.create_or_resume(config);"
        "threads = threading.active_count(); trackers = Trackers(config, run, Progress()).__enter__();"
        "trackers.iteration({}); trackers.step('train', 1, None); assert threading.active_count() == threads;"
        "trackers.__exit__(); assert not Path('run/trackers').exists();"
        "sys.exit(bool({'wandb', 'trackio', 'tensorboard'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


# A whole run


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

    def step(self, examples):
        if self.objective.__class__.__name__ == "Likelihood":
            taken.append(self.global_step)
            if len(taken) == cut_at:
                raise KeyboardInterrupt
        return original(self, examples)

    monkeypatch.setattr(Trainer, "step", step)
    changes = ("evolve.method=iterative_rft", "select.kind=random", "select.k=1", "stages=[pretrain,warmup,evolve]")
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
