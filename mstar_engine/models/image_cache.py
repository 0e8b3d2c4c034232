"""One preprocessing an image: a processor whose image part looks in a cache before it works.

What an image processor makes depends on the images' content, on its settings and on the call's options; all of them
are in the key. Everything else that a processor does (text, placeholders) stays its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import BatchFeature

from mstar_engine.data.file_image import FileImage
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.processor_print import code_of, versions

Calls = dict[str, dict[str, Any]]
"""What an image processor made, by the key that it is kept under."""
_CALLS: ContextVar[Calls | None] = ContextVar("image processor's calls", default=None)


@contextmanager
def calls_noted() -> Iterator[Calls]:
    """What caching image processors make, or find, in the body of the `with`."""
    calls: Calls = {}
    token = _CALLS.set(calls)
    try:
        yield calls
    finally:
        _CALLS.reset(token)


def caching_processor(processor: Any, cache: TensorCache) -> Any:
    """A copy of a Hugging Face processor that keeps what it makes of `FileImage`s; other images pass as before."""
    worker = getattr(processor, "image_processor", None)
    if worker is None:
        return processor
    try:
        settings = _settings(worker)
    except (TypeError, OSError):  # of a class whose source is nowhere
        return processor
    cached = copy.copy(processor)
    cached.image_processor = _caching(worker, settings, cache)
    return cached


def _caching(worker: Any, settings: str, cache: TensorCache) -> Any:
    """A copy of an image processor, of a class made for it: Python looks up `__call__` in the class."""

    def call(self: Any, images: Any, *args: Any, **options: Any) -> Any:
        key = None if args else _key(settings, images, options)
        if key is None:
            return worker(images, *args, **options)
        found = cache.get(key)
        made = worker(images, **options) if found is None else BatchFeature(found)
        if found is None:
            cache.put(key, dict(made))
        noted = _CALLS.get()
        if noted is not None:
            noted[key] = dict(made)
        return made

    named: dict[str, Callable] = {"__call__": call}
    copied = copy.copy(worker)
    copied.__class__ = type(type(worker).__name__, (type(worker),), named)
    return copied


def _settings(worker: Any) -> str:
    """The settings of an image processor, its code, and the versions of what computes by them. TypeError, OSError."""
    return json.dumps([versions(), code_of(type(worker)), worker.to_dict()], sort_keys=True, default=repr)


def _key(settings: str, images: Any, options: dict[str, Any]) -> str | None:
    """The hash of all that the result depends on; None when an image is no file's."""
    digests = image_digests(images)
    if digests is None:
        return None
    said = json.dumps([digests, options], sort_keys=True, default=repr)
    return hashlib.sha256(f"{settings}\n{said}".encode()).hexdigest()


def image_digests(images: Any) -> Any:
    """The digests of files' images, nested as the images are; None when an image is no file's, or there is none."""
    if isinstance(images, FileImage):
        return images.digest
    if not isinstance(images, (list, tuple)) or not images:
        return None
    found = [image_digests(image) for image in images]
    return None if None in found else found
