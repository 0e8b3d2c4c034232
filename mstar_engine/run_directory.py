"""The folder of a run: everything that it writes, and the right to write it.

    config.yaml  journal.jsonl  rollouts/  checkpoints/  report_images/  trackers/  summary.json  report.html
    evaluation.parquet  evaluation.md

One configuration, one folder: another configuration is refused, so that what lies there always belongs together.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import dump_config, identity
from mstar_engine.durable import FolderLock, replace_file, replace_text
from mstar_engine.journal import Journal, plain
from mstar_engine.rollout_file import RolloutWriter
from mstar_engine.yaml_text import parse_yaml


class RunDirectoryError(ValueError):
    """A run directory that this run may not use; one line that says what to do."""


class RunDirectory:
    """One run's folder, held by one process at a time; a context manager that closes the journal and gives it back."""

    def __init__(self, path: Path, lock: FolderLock, config: RunConfig) -> None:
        """Use `create_or_resume`."""
        self.path, self.config, self._lock = path, config, lock
        self.journal = Journal(path / "journal.jsonl")
        for folder in ("rollouts", "checkpoints", "report_images"):
            (path / folder).mkdir(exist_ok=True)

    @classmethod
    def create_or_resume(cls, config: RunConfig, resume: bool = False) -> RunDirectory:
        """Take `config.output_dir`, new or (with `resume`) where an earlier sitting of the same run stopped.

        Raises RunDirectoryError when another process holds it, when it was made by another configuration (the message
        names the keys), or when it holds a run and `resume` was not asked for.
        """
        path = Path(config.output_dir)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{path} is in use by another run (process {error}); wait for it or choose another output_dir"
            ) from None
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be used as output_dir: {error.strerror}") from None
        try:
            _agree(path, config, resume)
            replace_text(path / "config.yaml", dump_config(config))
            return cls(path, lock, config)
        except BaseException:
            lock.release()
            raise

    def rollout_writer(self, iteration: int, phase: str = "iteration") -> RolloutWriter:
        """The rollouts of one phase: `rollouts/<phase>_<iteration>.parquet`, resumed where they stopped."""
        return RolloutWriter(self.path / "rollouts" / f"{phase}_{iteration:04d}.parquet", iteration)

    def write_summary(self, summary: Any) -> None:
        """Replace `summary.json` in one step."""
        text = json.dumps(summary, indent=2, allow_nan=False, default=plain)
        replace_text(self.path / "summary.json", text + "\n")

    def write_report_image(self, problem_id: str, image: Any) -> None:
        """Keep a PIL image of a problem for the report, as PNG."""
        path = report_image_path(self.path, problem_id)
        replace_file(path, lambda temporary: image.save(temporary, format="PNG"))

    def close(self) -> None:
        """Close the journal and give the folder back."""
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def report_image_path(run: Path, problem_id: str) -> Path:
    """Where the report finds a problem's image; the id is quoted, so that no id leaves the folder."""
    name = quote(problem_id, safe=" ").replace(".", "%2E")
    return run / "report_images" / f"{name}.png"


def _agree(path: Path, config: RunConfig, resume: bool) -> None:
    """Refuse a folder that holds another run, or this one without leave to continue it."""
    if not (path / "config.yaml").exists():
        if (path / "journal.jsonl").exists():
            raise RunDirectoryError(f"{path} holds a journal but no config.yaml; choose another output_dir")
        return
    there = parse_yaml((path / "config.yaml").read_text(encoding="utf-8"), str(path / "config.yaml"))
    differing = differences(there if isinstance(there, dict) else {}, dataclasses.asdict(config))
    if differing:
        raise RunDirectoryError(
            f"{path} was made by another configuration: {differing}; "
            "choose another output_dir, or --resume with the same configuration"
        )
    if not resume:
        raise RunDirectoryError(f"{path} already holds a run; continue it with --resume, or choose another output_dir")


def differences(there: dict[str, Any], asked: dict[str, Any], sections: Sequence[str] | None = None) -> str:
    """In words, the keys in which two configurations would compute different things; "" when they agree.

    `sections` limits the comparison to these (a section, or one dotted key) and to keys outside of any section.
    """
    before, now = identity(there), identity(asked)
    differing = [
        key
        for key in now | before
        if (key not in before or key not in now or before[key] != now[key])
        and (sections is None or "." not in key or key in sections or key.partition(".")[0] in sections)
    ]
    shown = [f"{key} ({before.get(key, 'absent')} there, {now.get(key, 'absent')} now)" for key in differing[:4]]
    return ", ".join(shown + ([f"and {len(differing) - 4} more"] if len(differing) > 4 else []))
