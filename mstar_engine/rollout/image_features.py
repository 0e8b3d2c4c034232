"""Image features that are computed once while the weights that make them stay: sweeps, measurements and completions
prefill the same pictures again.

An entry is addressed by what the vision tower was given and by a fingerprint of the weights that it ran with, so an
update makes nothing stale; a frozen tower keeps its features for the whole run. Works for every family whose model has
transformers' `get_image_features` and returns the features image by image; for others it does nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mstar_engine.models.prompts import EncodedPrompt


class ImageFeatureCache:
    """Features by prompt, at most `capacity` bytes on the model's device, the least recently used out first."""

    def __init__(self, model: nn.Module, capacity: int) -> None:
        owners = [module for module in model.modules() if "get_image_features" in dir(type(module))]
        self.owner = owners[-1] if owners and capacity > 0 else None  # the innermost: the others call it
        self.model = model
        self.capacity = capacity
        self.hits = self.misses = 0
        self._held = 0
        self._epoch = b""
        self._form: type = dict  # of the model's own results
        self._entries: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
        self._digests = WeakIdKeyDictionary()  # by the prompts' first input

    def refresh(self) -> None:
        """Look at the weights outside the language model; to be called when they may have changed."""
        if self.owner is None:
            return
        epoch = fingerprint(self.model)
        if epoch != self._epoch:
            self._entries.clear()
            self._held, self._epoch = 0, epoch

    def release(self) -> None:
        """Give the memory back before training, unless what makes features is frozen."""
        if any(parameter.requires_grad for parameter in tower_parameters(self.model)):
            self._entries.clear()
            self._held = 0

    @contextmanager
    def prompts(self, prompts: Sequence[EncodedPrompt]) -> Iterator[None]:
        """Around the forward of prompts of one shape: their features come from here where they are known."""
        if self.owner is None or not prompts[0].inputs:
            yield
            return
        keys = [self._key(prompt) for prompt in prompts]
        compute = self.owner.get_image_features
        self.owner.get_image_features = lambda *given, **named: self._features(compute, keys, given, named)
        try:
            yield
        finally:
            del self.owner.get_image_features  # the instance's; the class has its own

    def _features(self, compute: Callable[..., Any], keys: list[bytes], given: tuple, named: dict[str, Any]) -> Any:
        missing = [i for i, key in enumerate(keys) if key not in self._entries]
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        known = {key: self._entries[key] for key in keys if key in self._entries}
        if missing:
            part = [_select(value, missing, len(keys)) for value in given]
            result = compute(*part, **{name: _select(value, missing, len(keys)) for name, value in named.items()})
            split = _split(result, len(missing))
            if split is None:  # not image by image: as if there were no cache
                self.owner = None
                return result if len(missing) == len(keys) else compute(*given, **named)
            self._form = type(result)
            known |= {keys[i]: entry for i, entry in zip(missing, split)}
            for i in missing:
                self._keep(keys[i], known[keys[i]])
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)
        return self._form(**_joined([known[key] for key in keys]))

    def _keep(self, key: bytes, entry: dict[str, Any]) -> None:
        if key in self._entries:
            return
        self._entries[key] = entry
        self._held += _nbytes(entry)
        while self._held > self.capacity:
            self._held -= _nbytes(self._entries.popitem(last=False)[1])

    def _key(self, prompt: EncodedPrompt) -> bytes:
        """What the vision tower is given for a prompt; read once a prompt object."""
        anchor = next(iter(prompt.inputs.values()))
        if anchor not in self._digests:
            digest = hashlib.blake2b(digest_size=16)
            for name, value in sorted(prompt.inputs.items()):
                digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.contiguous().view(torch.uint8).numpy())
            self._digests[anchor] = digest.digest()
        return self._digests[anchor]


def tower_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of the language model and the output head, where these can be told apart."""
    behind = [getattr(getattr(model, "model", model), "language_model", None), model.get_output_embeddings()]
    skipped = {id(p) for module in behind if module is not None for p in module.parameters()}
    return [p for p in model.parameters() if id(p) not in skipped and p.numel() > 0]


def fingerprint(model: nn.Module) -> bytes:
    """Of the tower's parameters: where they are and a sum over their bits, one read of them."""
    sums, places = [], []
    for parameter in tower_parameters(model):
        bits = parameter.detach().contiguous().view(torch.int16).flatten()
        sums.append(bits.sum(dtype=torch.int64))
        places.append(parameter.data_ptr())
    return repr((places, torch.stack(sums).tolist() if sums else [])).encode()


def _select(value: Any, missing: list[int], count: int) -> Any:
    """Of an argument that holds the images of `count` prompts of one shape, those of some prompts."""
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] % count or len(missing) == count:
        return value
    return value.unflatten(0, (count, -1))[missing].flatten(0, 1)


def _split(result: Any, count: int) -> list[dict[str, Any]] | None:
    """The result by prompt: features by image, and where there are such, by layer and image. None where they do not
    come apart. Copies, since a view would keep the features of the whole batch."""
    pooled = getattr(result, "pooler_output", None)
    if pooled is None or len(pooled) % count:
        return None
    each = len(pooled) // count
    entries: list[dict[str, Any]] = [{"pooler_output": _part(pooled, i, each)} for i in range(count)]
    layers = getattr(result, "deepstack_features", None)
    for layer in layers or ():
        if len(layer) % count:
            return None
        size = len(layer) // count
        for i, entry in enumerate(entries):
            entry.setdefault("deepstack_features", []).append(_part(layer, i, size))
    return entries


def _part(features: Any, index: int, size: int) -> Any:
    part = features[index * size : (index + 1) * size]
    return part.clone() if isinstance(part, Tensor) else [image.clone() for image in part]


def _joined(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What `_split` took apart."""

    def join(parts: Sequence[Any]) -> Any:
        return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [image for part in parts for image in part]

    joined = {"pooler_output": join([entry["pooler_output"] for entry in entries])}
    if "deepstack_features" in entries[0]:
        joined["deepstack_features"] = [join(parts) for parts in zip(*(e["deepstack_features"] for e in entries))]
    return joined


def _nbytes(entry: Any) -> int:
    if isinstance(entry, Tensor):
        return entry.nbytes
    return sum(_nbytes(value) for value in (entry.values() if isinstance(entry, dict) else entry))
