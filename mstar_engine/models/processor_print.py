"""What a processor's outputs depend on beside its inputs, as text: settings, chat template, vocabulary, code, versions.

It keys what is kept of them. Whatever cannot be told exactly is not guessed at: such a processor has no print, and
nothing of it is kept. Where its files lie is no part of it, so a checkpoint that was written again reads what was kept.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.metadata
import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from mstar_engine.data import images

# Where files lie, and what a print says elsewhere: classes, the template.
_LEFT_OUT = {
    "name_or_path", "chat_template", "processor_class", "_processor_class", "image_processor_type",
    "video_processor_type", "feature_extractor_type",
}  # fmt: skip
# Of a tokenizer: its vocabulary and rules, which are told by their JSON, and what nothing is encoded by.
_TOLD_BY_RULES = {
    "_tokenizer", "init_inputs", "init_kwargs", "files_loaded", "vocab_file", "vocab", "_vocab", "merges", "_merges",
    "_should_update_post_processor", "SPECIAL_TOKENS_ATTRIBUTES", "deprecation_warnings", "verbose", "backend",
    "_in_target_context_manager",
}  # fmt: skip
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "pillow", "numpy", "torch", "torchvision")


def processor_print(processor: Any) -> str | None:
    """The print of a processor as it is now, some kilobytes of JSON; None when it has parts that cannot be told."""
    try:
        tokenizer = getattr(processor, "tokenizer", processor)
        template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        return json.dumps([versions(), _plain(template), _part(processor)], sort_keys=True)
    except (TypeError, OSError):
        return None


@cache
def versions() -> list[str | None]:
    """What makes pixels of files and inputs of pixels: our own code's digest, the libraries' versions or None."""
    return [hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest(), *map(_version, _LIBRARIES)]


def code_of(kind: type) -> list[str]:
    """Names of a class and its bases, with a digest of the source of those that no library has. TypeError, OSError."""
    said = []
    for base in kind.__mro__:
        said.append(f"{base.__module__}.{base.__qualname__}")
        if base.__module__.partition(".")[0] not in ("builtins", "abc", "collections", "typing", *_LIBRARIES):
            source = Path(inspect.getfile(base))
            # A checkpoint's own code comes in several files, which import each other.
            said += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(source.parent.glob("*.py"))]
    return said


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _part(part: Any) -> Any:
    """A processor or a part of one, as JSON. TypeError for what cannot be told."""
    if isinstance(part, PreTrainedTokenizerBase):
        return _tokenizer(part)
    if hasattr(part, "apply_chat_template") or callable(getattr(part, "to_dict", None)):
        return [code_of(type(part)), _attributes(part, _LEFT_OUT)]
    raise TypeError(type(part))


def _tokenizer(tokenizer: Any) -> Any:
    """A tokenizer by the JSON of its vocabulary and rules, and by its attributes. TypeError for one in plain Python."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TypeError(type(tokenizer))
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # How the last call padded, which the next one says anew.
    rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return [code_of(type(tokenizer)), digest, _attributes(tokenizer, _LEFT_OUT | _TOLD_BY_RULES)]


def _attributes(part: Any, left_out: set[str]) -> Any:
    return _plain({name: value for name, value in vars(part).items() if name not in left_out})


def _plain(value: Any) -> Any:
    """A value as JSON, exactly. TypeError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, AddedToken):  # how it is split off is in the vocabulary's JSON
        return str(value)
    if isinstance(value, (torch.dtype, enum.Enum, type)):
        return [str(value)]
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"items": sorted(([_plain(name), _plain(item)] for name, item in value.items()), key=repr)}
    if dataclasses.is_dataclass(value):
        return [type(value).__qualname__, _plain(vars(value))]
    return _part(value)
