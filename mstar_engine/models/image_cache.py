"""One preprocessing an image: a processor whose image part looks in a cache before it works.

What an image processor makes depends on the images' content, on its settings and on the call's options; all of them
are in the key. Everything else that a processor does (text, placeholders) stays its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import PIL
import transformers
from transformers import BatchFeature

from mstar_engine.data.file_image import FileImage
from mstar_engine.data.tensor_cache import TensorCache


def caching_processor(processor: Any, cache: TensorCache) -> Any:
    """A copy of a Hugging Face processor that keeps what it makes of `FileImage`s; other images pass as before."""
    worker = getattr(processor, "image_processor", None)
    if worker is None:
        return processor
    cached = copy.copy(processor)
    cached.image_processor = _caching(worker, cache)
    return cached


def _caching(worker: Any, cache: TensorCache) -> Any:
    """A copy of an image processor, of a class made for it: Python looks up `__call__` in the class."""
    settings = _settings(worker)

    def call(self: Any, images: Any, *args: Any, **options: Any) -> Any:
        key = None if args else _key(settings, images, options)
        if key is None:
            return worker(images, *args, **options)
        kept = cache.get(key)
        if kept is not None:
            return BatchFeature(kept)
        made = worker(images, **options)
        cache.put(key, dict(made))
        return made

    named: dict[str, Callable] = {"__call__": call}
    copied = copy.copy(worker)
    copied.__class__ = type(type(worker).__name__, (type(worker),), named)
    return copied


def _settings(worker: Any) -> str:
    """The settings of an image processor and the versions of what computes by them."""
    versions = [transformers.__version__, PIL.__version__, type(worker).__module__, type(worker).__qualname__]
    return json.dumps([versions, worker.to_dict()], sort_keys=True, default=repr)


def _key(settings: str, images: Any, options: dict[str, Any]) -> str | None:
    """The hash of all that the result depends on; None when an image is no file's."""
    digests = _digests(images)
    if digests is None:
        return None
    said = json.dumps([digests, options], sort_keys=True, default=repr)
    return hashlib.sha256(f"{settings}\n{said}".encode()).hexdigest()


def _digests(images: Any) -> Any:
    """The images' digests, nested as the images are."""
    if isinstance(images, FileImage):
        return images.digest
    if not isinstance(images, (list, tuple)) or not images:
        return None
    found = [_digests(image) for image in images]
    return None if None in found else found
