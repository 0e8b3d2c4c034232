"""What a tracker is: the one interface behind which TensorBoard, W&B, Trackio and a plain file are alike.

A tracker is free to fail. Whoever calls it does so through `guarded.py`, so it needs no defences of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

from mstar_engine.durable import replace_text

# An iteration's metrics lie over the iteration; those of an optimizer step over the steps of its phase.
Axis = Literal["iteration", "train/global_step", "warmup/global_step"]
AXES: tuple[Axis, ...] = get_args(Axis)


class Tracker(Protocol):
    """Receives the metrics of one sitting of a run, in this order: `start` once, `log` often, `finish` once.

    `package` is the pip package that it needs, "" for none; it is imported in `start`, not before.
    """

    package: ClassVar[str]

    def start(self, run: str, config: Mapping[str, Any], directory: Path) -> None:
        """Begin, or go on with what an earlier sitting began: `directory` (the run's `trackers/`) may hold its files.

        `run` is the run's name, `config` its configuration by dotted key.
        """
        ...

    def log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        """Finite metrics by name, at `step` of `axis`."""
        ...

    def finish(self) -> None:
        """Bring everything to where it belongs and let go."""
        ...


def kept(path: Path, make: Callable[[], str]) -> str:
    """The line of text in `path`, made in the first sitting and the same in all later ones."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, make() + "\n")
    return path.read_text(encoding="utf-8").strip()
