"""Encoded prompts kept on disk: a second pass over the data needs no chat template, tokenizer or image processor.

A prompt is kept under all that determines it: the processor's print, the messages with images by their content, and
what is run on them. Of its tensors, those that the image processor made are kept with the images, once for all
questions about them; what a family makes of several images or of text and image together is kept with the prompt.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mstar_engine.data.file_image import FileImage
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.image_cache import Calls, caching_processor, calls_noted
from mstar_engine.models.processor_print import processor_print

Messages = list[dict[str, Any]]
"""A conversation, as chat templates take it."""
Run = Callable[..., Mapping[str, Any]]
"""From a processor, messages and options to the processor's outputs; a function of a module, without state."""


class PromptCache:
    """Runs a processor on conversations, or finds what it made of them before. Thread-safe.

    The processor must not be changed from the first conversation on.
    """

    def __init__(self, processor: Any, kept: TensorCache) -> None:
        self._processor, self._kept = processor, kept
        self._caching = caching_processor(processor, kept)
        self._lock = Lock()
        self._print: str | None = None
        self._printed = False

    def outputs(self, run: Run, messages: Messages, **options: Any) -> Mapping[str, Any]:
        """What is read of `run(processor, messages, **options)`: its tensors, the attention mask apart, at least."""
        key = self._key(run, messages, options)
        if key is None:
            return run(self._caching, messages, **options)
        found = self._found(key)
        if found is not None:
            return found
        with calls_noted() as calls:
            made = run(self._caching, messages, **options)
        self._keep(key, made, calls)
        return made

    def _key(self, run: Run, messages: Messages, options: Mapping[str, Any]) -> str | None:
        """None when an image is no file's, or the processor cannot be told."""
        try:
            said = json.dumps([run.__qualname__, _source(run), messages, options], sort_keys=True, default=_digest)
        except TypeError:
            return None
        with self._lock:
            if not self._printed:
                self._print, self._printed = processor_print(self._processor), True
        return self._print and hashlib.sha256(f"prompt\n{self._print}\n{said}".encode()).hexdigest()

    def _found(self, key: str) -> dict[str, Tensor] | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        images = {key: self._kept.get(key) for key in dict.fromkeys(key for _, key, _ in entry["images"])}
        if None in images.values():  # dropped to make room
            return None
        own = dict(zip(entry["names"], entry["tensors"]))
        made = {name: images[key][part] for name, key, part in entry["images"]}
        return {name: own[name] if name in own else made[name] for name in entry["order"]}

    def _keep(self, key: str, made: Mapping[str, Any], calls: Calls) -> None:
        tensors = {n: value for n, value in made.items() if isinstance(value, Tensor) and n != "attention_mask"}
        images = [[name, *place] for name, value in tensors.items() if (place := _place(value, calls)) is not None]
        there = {name for name, _, _ in images}
        own = {name: value for name, value in tensors.items() if name not in there}
        entry = {"order": list(tensors), "images": images, "names": list(own), "tensors": list(own.values())}
        self._kept.put(key, entry)


@cache
def _source(run: Run) -> str:
    """The digest of the file that a function is in."""
    return hashlib.sha256(Path(inspect.getfile(run)).read_bytes()).hexdigest()


def _place(value: Tensor, calls: Calls) -> tuple[str, str] | None:
    """Where among the image processor's outputs a tensor is, bit for bit: the key and the name."""
    for key, outputs in calls.items():
        for name, other in outputs.items():
            if isinstance(other, Tensor) and _same(value, other):
                return key, name
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape or not one.numel():
        return False
    return one is other or torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def _digest(value: object) -> dict[str, str]:
    if isinstance(value, FileImage):
        return {"sha256": value.digest}
    raise TypeError(type(value))
