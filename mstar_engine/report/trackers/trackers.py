"""The trackers of one sitting, told together what the run measures.

A tracker that fails is said so in one line, noted in the journal and told nothing more; the run and the other trackers
go on. They hear of a thing once it is in the journal, so nothing that was done in an earlier sitting is told again;
what was journalled the moment before a crash they may never hear of. A tracker that joins in a later sitting knows the
run from there on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import flat_config
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.guarded import Guarded
from mstar_engine.report.trackers.jsonl import JsonlTracker
from mstar_engine.report.trackers.metrics import entry_metrics, place_metrics, step_metrics
from mstar_engine.report.trackers.tensorboard import TensorboardTracker
from mstar_engine.report.trackers.tracker import Axis, Tracker
from mstar_engine.report.trackers.trackio import TrackioTracker
from mstar_engine.report.trackers.wandb import WandbTracker
from mstar_engine.run_directory import RunDirectory

if TYPE_CHECKING:
    from mstar_engine.train.trainer import StepStats

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "jsonl": JsonlTracker,
}
# How long a run waits for a tracker, in seconds: to reach a server at its start and end, else for a local file.
PATIENCE = {"start": 60.0, "log": 10.0, "finish": 60.0}


class Trackers:
    """Those of `config.report_to`; a context manager that starts and finishes them. With none, it does nothing."""

    def __init__(self, config: RunConfig, run: RunDirectory, progress: Progress) -> None:
        self._config, self._directory, self._progress = config, run, progress
        self._on: dict[str, Guarded] = {}

    def __enter__(self) -> Trackers:
        """Start every tracker."""
        folder = self._directory.path / "trackers"
        config = flat_config(dataclasses.asdict(self._config))
        self._on = {name: Guarded(TRACKERS[name]) for name in dict.fromkeys(self._config.report_to)}
        self._all("start", self._directory.path.resolve().name, config, folder)
        return self

    def __exit__(self, *_: object) -> None:
        """Finish them, however the sitting ended."""
        self._all("finish")
        for tracker in self._on.values():
            tracker.close()
        self._on = {}

    def iteration(self, entry: Mapping[str, Any]) -> None:
        """An iteration is over."""
        if self._on:
            self._log("iteration", entry["iteration"], entry_metrics(entry))

    def place(self, iteration: int, place: Mapping[str, Any]) -> None:
        """The policy was measured apart from the iterations: warmed up (iteration 0), or after the last."""
        if self._on:
            self._log("iteration", iteration, place_metrics(place))

    def step(self, family: Literal["train", "warmup"], number: int, step: StepStats) -> None:
        """An optimizer step is done, the `number`th (from 1) of the evolution or of the warm-up."""
        if self._on:
            self._log("train/global_step" if family == "train" else "warmup/global_step", number,
                      step_metrics(family, step))  # fmt: skip

    def _log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._all("log", axis, step, values)

    def _all(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._on.items()):
            reason = tracker.call(method, PATIENCE[method], *arguments)
            if reason is not None:
                self._switch_off(name, reason)

    def _switch_off(self, name: str, reason: str) -> None:
        self._on.pop(name).close()
        self._progress.say(f"tracker {name} is off: {reason}; the run goes on without it")
        with contextlib.suppress(OSError):  # a full disk is the run's to report
            self._directory.journal.append("tracker", name=name, reason=reason)
