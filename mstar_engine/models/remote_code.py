"""Checkpoints that bring code of their own: run only where that was asked for, and never without naming the files."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

log = logging.getLogger(__name__)
CONFIGS = (
    *("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    *("image_processor_config.json", "video_preprocessor_config.json"),
)
"""Files of a checkpoint that may name code (`auto_map`)."""


def code_files(path: str | Path) -> list[str]:
    """The code files that a checkpoint directory names, sorted; "repo: file" for those of another repository. Empty for
    a hub name: what that brings is not known before it is fetched."""
    return sorted({_file(name) for _, names in _auto_maps(Path(path)) for name in names})


def refuse_code(path: str | Path, key: str, trusted: bool) -> None:
    """Raise ValueError where a checkpoint directory can only be loaded by code that is not `trusted`, naming `key`, the
    path and the files; where it is trusted, warn with the files."""
    files = code_files(path)
    if trusted:
        if files:
            _warn(f"{key}={path}: runs code of the checkpoint: {', '.join(files)}")
        elif not Path(path).exists():
            _warn(f"{key}={path}: runs whatever code the repository brings")
        return
    config = Path(path) / "config.json"
    if files and json.loads(config.read_text(encoding="utf-8")).get("model_type") not in CONFIG_MAPPING:
        allowed = "read it, and set model.trust_remote_code=true"
        if not key.startswith("model."):
            allowed = "allowed: a checkpoint that transformers loads by itself"
        raise ValueError(
            f"{key}={path}: the checkpoint needs code of its own, which would run here ({', '.join(files)}); {allowed}"
        )


def own_class(config: PretrainedConfig, kinds: tuple[type, ...]) -> type | None:
    """The first of some auto classes for which a checkpoint's own code has a model."""
    named = getattr(config, "auto_map", None) or {}
    return next((kind for kind in kinds if kind.__name__ in named), None)


@functools.cache
def _warn(message: str) -> None:
    """Once a process: a checkpoint is looked at several times before it is loaded."""
    log.warning(message)


def _auto_maps(path: Path) -> Iterator[tuple[str, list[str]]]:
    for name in CONFIGS:
        try:
            values = json.loads((path / name).read_text(encoding="utf-8")).get("auto_map", {})
        except (OSError, ValueError, AttributeError):  # whoever loads it will say what is wrong with it
            continue
        for kind, named in values.items() if isinstance(values, dict) else ():
            yield kind, [each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)]


def _file(name: str) -> str:
    repository, _, place = name.rpartition("--")
    file = f"{place.rpartition('.')[0]}.py"
    return f"{repository}: {file}" if repository else file
