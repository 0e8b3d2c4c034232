"""Metrics in a local Trackio database below `trackio/`: `TRACKIO_DIR=<run>/trackers/trackio trackio show`.

TRACKIO_DIR, when set, is where it goes instead (one place for many runs), and TRACKIO_SPACE_ID or TRACKIO_SERVER_URL
send it elsewhere, as Trackio's users know. The run's name there is kept in `trackio_name`, so that later sittings go
on with the same run. The steps of an iteration that is redone after an interruption are two rows with the same step.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from mstar_engine.report.trackers.tracker import Axis, kept

PROJECT = "mstar_engine"


class TrackioTracker:
    """Logs to one Trackio run."""

    package = "trackio"

    def start(self, run: str, config: Mapping[str, Any], directory: Path) -> None:
        """Begin or continue the run. Raises RuntimeError when Trackio writes elsewhere in this process already."""
        folder = Path(os.environ.get("TRACKIO_DIR") or directory / "trackio").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        self._trackio = trackio = imported(folder)
        there = Path(trackio.utils.TRACKIO_DIR)
        if there != folder:
            raise RuntimeError(f"trackio writes to {there} in this process; set TRACKIO_DIR to gather several runs")
        name = kept(directory / "trackio_name", lambda: f"{run}-{secrets.token_hex(3)}")
        with hushed():
            self._run = trackio.init(project=PROJECT, name=name, resume="allow", config=dict(config), embed=False)
        if is_local():
            print(f"trackio: TRACKIO_DIR={there} trackio show --project {PROJECT}", file=sys.stderr)

    def log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        """One row; Trackio's own thread writes it within a second."""
        self._run.log({axis: step, **values}, step=step)

    def finish(self) -> None:
        """Wait until everything is written."""
        with hushed():
            self._trackio.finish()


def imported(folder: Path) -> Any:
    """Trackio, which reads its folder from the environment when it is first imported."""
    before = os.environ.get("TRACKIO_DIR")
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        import trackio
    finally:
        if before is None:
            del os.environ["TRACKIO_DIR"]
        else:
            os.environ["TRACKIO_DIR"] = before
    return trackio


def is_local() -> bool:
    """Whether the user has sent Trackio nowhere else."""
    return not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep what Trackio prints off standard output, where results belong.

    Its local notes are dropped, as they leave out where the database is; those of a server go to standard error.
    """
    with contextlib.redirect_stdout(_Hushed(sys.stdout, None if is_local() else sys.stderr)):
        yield


class _Hushed:
    """Standard output, but for the thread that made this: the run's own lines come through even if Trackio hangs."""

    def __init__(self, stdout: TextIO, instead: TextIO | None) -> None:
        self._stdout, self._instead, self._thread = stdout, instead, threading.get_ident()

    def write(self, text: str) -> int:
        """Write where this thread's text belongs."""
        if threading.get_ident() != self._thread:
            return self._stdout.write(text)
        return len(text) if self._instead is None else self._instead.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)
