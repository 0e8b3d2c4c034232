"""Metrics as a run of Weights & Biases, with what its users know: `wandb login`, WANDB_MODE, WANDB_PROJECT and so on.

Without an API key and without a mode it logs offline, below `wandb/`, and never asks: `wandb sync` uploads that later.
The run's id is kept in `wandb_id`, so that later sittings go on with the same run (offline: with a further folder of
the same id; `wandb sync` puts them together in their order). A log is one row of the history, so the steps of an
iteration that is redone after an interruption are two rows with the same step; charts show both.
"""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mstar_engine.report.trackers.metrics import ITERATION_FAMILIES
from mstar_engine.report.trackers.tracker import AXES, Axis, kept

PROJECT = "mstar_engine"
SECONDS = 45.0  # for the server, at the start and at the end


class WandbTracker:
    """Logs to one W&B run; each family of metrics has its own x axis there."""

    package = "wandb"

    def start(self, run: str, config: Mapping[str, Any], directory: Path) -> None:
        """Begin or continue the run. Raises ValueError when online mode is asked for and no API key is there."""
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        settings = wandb.setup().settings  # what environment, settings files and defaults amount to
        mode = None
        if settings.mode not in ("offline", "disabled", "dryrun") and not has_key(settings):
            if os.environ.get("WANDB_MODE"):
                raise ValueError(
                    f"WANDB_MODE={settings.mode}, but no API key is configured; allowed: WANDB_API_KEY, wandb login, "
                    "WANDB_MODE=offline"
                )
            mode = "offline"
        # Console capture would fight with the progress bar over the terminal.
        wanted = {"init_timeout": SECONDS, "finish_timeout": SECONDS, "finish_timeout_raises": True, "console": "off"}
        wanted |= {"login_timeout": 5.0} | ({} if os.environ.get("WANDB_QUIET") else {"quiet": True})
        self._run = wandb.init(
            project=None if settings.project else PROJECT,
            name=unless_set("WANDB_NAME", run),
            id=unless_set("WANDB_RUN_ID", kept(directory / "wandb_id", lambda: secrets.token_hex(4))),
            dir=unless_set("WANDB_DIR", str(directory)),
            resume=unless_set("WANDB_RESUME", "allow"),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(**{key: value for key, value in wanted.items() if hasattr(settings, key)}),
        )
        for axis in AXES:
            self._run.define_metric(axis)
        for family in ITERATION_FAMILIES:
            self._run.define_metric(f"{family}/*", step_metric="iteration")
        for family in ("train", "warmup"):
            self._run.define_metric(f"{family}/*", step_metric=f"{family}/global_step")

    def log(self, axis: Axis, step: int, values: Mapping[str, float]) -> None:
        """One row of the history."""
        self._run.log({axis: step, **values})

    def finish(self) -> None:
        """Upload what is left, or close the offline files. TimeoutError when the server takes too long."""
        self._run.finish()


def unless_set(variable: str, value: str) -> str | None:
    """`value`, or None when an environment variable of W&B's says something else."""
    return None if os.environ.get(variable) else value


def has_key(settings: Any) -> bool:
    """Whether W&B would find credentials without asking: in the environment, its settings or the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if getattr(settings, "api_key", None):
        return True
    host = urlsplit(settings.base_url).netloc
    # A key from before W&B moved its hosts is still found under the old name.
    hosts = [host, "api.wandb.ai"] if host.endswith((".wandb.ai", ".coreweave.com")) else [host]
    try:
        entries = netrc.netrc(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(entries.authenticators(host) for host in hosts)
