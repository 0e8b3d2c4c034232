"""Metrics as lines of JSON in `metrics.jsonl`, for whoever reads with a program of their own.

    {"time": 1732608000.1, "iteration": 3, "validation/greedy": 0.61, ...}
    {"time": 1732608002.5, "train/global_step": 120, "train/loss": 0.42, ...}

A line is on the disk when `log` returns, and the file only grows. A line torn by a crash is cut off in the next
sitting. The steps of an iteration that is redone after an interruption are there twice; the later line counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mstar_engine.durable import AppendFile
from mstar_engine.report.trackers.tracker import Axis


class JsonlTracker:
    """Writes `metrics.jsonl`."""

    package = ""

    def start(self, run: str, config: Mapping[str, Any], directory: Path) -> None:
        """Open the file behind its last whole line. The configuration is in the run's config.yaml already."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        written = path.read_bytes() if path.exists() else b""
        self._file = AppendFile(path, written.rfind(b"\n") + 1)

    def log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        record = {"time": round(time.time(), 3), axis: step, **values}
        self._file.append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def finish(self) -> None:
        """Close the file."""
        self._file.close()
