"""A tracker may raise anything, anywhere, or hang: it is said once, noted, and stops nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tracked import GREEDY, ROOT, STEP, Broken

from mstar_engine.config_parse import load_config
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.guarded import Guarded, reason
from mstar_engine.report.trackers.trackers import PATIENCE, TRACKERS, Trackers
from mstar_engine.run_directory import RunDirectory


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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            guarded.call("start", 60.0, "run", {}, Path())
    finally:
        signal.signal(signal.SIGINT, before)
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
