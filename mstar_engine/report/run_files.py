"""What the report knows of a run: what the run directory says, finished or not, of this version or another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import flat_config, merge
from mstar_engine.journal import read_events
from mstar_engine.summary import Summary, read_summary
from mstar_engine.yaml_text import parse_yaml


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run directory read: `config` is the configuration laid over the defaults, unchecked."""

    path: Path
    config: dict[str, Any]
    summary: Summary
    events: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.resolve().name

    @property
    def k(self) -> int:
        """The K of Pass@K."""
        return self.config["evaluate"]["pass_at_k"]

    @property
    def reward_k(self) -> int:
        """The K of Reward-Pass@K."""
        return self.config["evaluate"].get("reward_pass_at_k", 2)

    def changed(self) -> dict[str, Any]:
        """What the run set differently from the defaults, except where it wrote: dotted key to value."""
        defaults = flat_config(asdict(RunConfig()))
        return {
            key: value
            for key, value in flat_config(self.config).items()
            if key != "output_dir" and (key not in defaults or defaults[key] != value)
        }


def read_run(path: Path) -> RunFiles:
    """The run directory `path`. ValueError when it is none, or when what it holds cannot be read."""
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path}: no run directory (no config.yaml in it)")
    written = parse_yaml((path / "config.yaml").read_text(encoding="utf-8"), str(path / "config.yaml"))
    if not isinstance(written, dict):
        raise ValueError(f"{path / 'config.yaml'}: holds no configuration; allowed: a mapping of keys to values")
    # Laid over the defaults and not checked: a run of another version still has its report.
    defaults = asdict(RunConfig())
    config = merge(defaults, written)
    for key, value in defaults.items():
        if isinstance(value, dict) and not isinstance(config[key], dict):
            raise ValueError(f"{path / 'config.yaml'}: {key}={config[key]}; allowed: a section")
    summary = read_summary(path / "summary.json") if (path / "summary.json").is_file() else Summary()
    return RunFiles(path, config, summary, read_events(path / "journal.jsonl"))
