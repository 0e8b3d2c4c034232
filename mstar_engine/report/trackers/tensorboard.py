"""Metrics as TensorBoard event files below `tensorboard/`: `tensorboard --logdir <run>/trackers`.

Each sitting adds an event file, which TensorBoard shows as one run. The steps of an iteration that is redone after an
interruption are there twice, at the same x; TensorBoard draws both, in the order in which they were written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mstar_engine.report.trackers.tracker import Axis


class TensorboardTracker:
    """Writes scalars; the x axis of a name is the step of its axis."""

    package = "tensorboard"

    def start(self, run: str, config: Mapping[str, Any], directory: Path) -> None:
        """Open a new event file; the first one also holds the configuration as a table."""
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / "tensorboard"
        first = not any(folder.glob("events.*"))
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        if first:
            rows = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in config.items()]
            self._writer.add_text("config", "\n".join(["| key | value |", "|---|---|", *rows]))

    def log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        """One scalar a name; an iteration is on the disk when this returns."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if axis == "iteration":
            self._writer.flush()

    def finish(self) -> None:
        """Flush and close."""
        self._writer.close()
