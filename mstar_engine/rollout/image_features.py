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
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.vision_tower import tower_parameters

WIDTH = 1024
"""Elements of a row, where a fingerprint sums over rows and columns."""


class ImageFeatureCache:
    """Features by prompt, at most `capacity` bytes on the model's device, the least recently used out first."""

    def __init__(self, model: nn.Module, capacity: int) -> None:
        owners = [module for module in model.modules() if "get_image_features" in dir(type(module))]
        self.owner = owners[-1] if owners and capacity > 0 else None  # the innermost: the others call it
        self.model = model
        self.capacity = capacity
        self.hits = self.misses = 0
        self._held = 0
        self._comes_apart = True  # the result for images of several shapes
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
        """Around a forward of prompts: their features come from here where they are known."""
        shown = [prompt for prompt in prompts if prompt.inputs]
        if self.owner is None or not shown:
            yield
            return
        keys = [self._key(prompt) for prompt in shown]
        shares = Shares(shown)
        compute = self.owner.get_image_features
        self.owner.get_image_features = lambda *given, **named: self._features(compute, keys, shares, given, named)
        try:
            yield
        finally:
            del self.owner.get_image_features  # the instance's; the class has its own

    def _features(
        self, compute: Callable[..., Any], keys: list[bytes], shares: Shares, given: tuple, named: dict[str, Any]
    ) -> Any:
        missing = [i for i, key in enumerate(keys) if key not in self._entries]
        apart = shares.alike or (self._comes_apart and all(shares.cuts(value) for value in (*given, *named.values())))
        if missing and not apart:
            missing = list(range(len(keys)))
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        known = {key: self._entries[key] for key in keys if key in self._entries}
        if missing:
            part = [shares.select(value, missing) for value in given]
            result = compute(*part, **{name: shares.select(value, missing) for name, value in named.items()})
            split = _split(result, shares, missing)
            if split is None:  # not image by image: as if there were no cache
                if shares.alike:
                    self.owner = None
                self._comes_apart = False
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


def fingerprint(model: nn.Module) -> bytes:
    """Of the tower's parameters: where they are and, over their bits, sums that tell places apart; it is read twice."""
    sums, places = [], []
    for parameter in tower_parameters(model):
        flat = parameter.detach().contiguous().flatten()
        bits = flat.view(torch.uint8 if flat.dtype.itemsize == 1 else torch.int16)
        body = bits[: len(bits) // WIDTH * WIDTH].view(-1, WIDTH)
        for part in (body.sum(0, dtype=torch.int64), body.sum(1, dtype=torch.int64), bits[body.numel() :].long()):
            sums.append((part * torch.arange(1, len(part) + 1, device=part.device)).sum())
        places.append(parameter.data_ptr())
    return repr((places, torch.stack(sums).tolist() if sums else [])).encode()


class Shares:
    """How the images of some prompts lie behind one another: which part of a tensor is whose."""

    def __init__(self, prompts: Sequence[EncodedPrompt]) -> None:
        self.count = len(prompts)
        shapes = [{name: tuple(value.shape) for name, value in prompt.inputs.items()} for prompt in prompts]
        self.alike = all(shape == shapes[0] for shape in shapes)
        names = {name for shape in shapes for name in shape}
        self._lengths = {name: [shape.get(name, (0,))[0] for shape in shapes] for name in names}
        self._behind = {name: next(shape[name][1:] for shape in shapes if name in shape) for name in names}

    def of(self, places: Sequence[int], total: int, behind: tuple[int, ...] | None = None) -> list[int] | None:
        """Of `total` rows that hold something of every prompt of `places`, how many are whose: as many each where all
        prompts have one shape, else as many as of the prompts' own input of that length (and of shape `behind` the
        first dimension, where that is given). None where that is not clear."""
        if self.alike:
            return None if total % len(places) else [total // len(places)] * len(places)
        found = {
            tuple(lengths[place] for place in places)
            for name, lengths in self._lengths.items()
            if sum(lengths[place] for place in places) == total and behind in (None, self._behind[name])
        }
        return list(found.pop()) if len(found) == 1 else None

    def cuts(self, value: Any) -> bool:
        """Whether `select` can tell the prompts apart in an argument; what is no tensor of rows is the same for all."""
        return self.alike or not _has_rows(value) or self._of(value) is not None

    def select(self, value: Any, missing: list[int]) -> Any:
        """Of an argument that holds the images of all prompts, those of some."""
        if len(missing) == self.count or not _has_rows(value):
            return value
        lengths = self._of(value)
        if lengths is None:
            return value
        parts = value.split(lengths)
        return torch.cat([parts[i] for i in missing])

    def _of(self, value: Tensor) -> list[int] | None:
        return self.of(range(self.count), value.shape[0], tuple(value.shape[1:]))


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _split(result: Any, shares: Shares, places: list[int]) -> list[dict[str, Any]] | None:
    """The result by prompt: features by image, and where there are such, by layer and image. None where they do not
    come apart. Copies, since a view would keep the features of the whole batch."""
    pooled = getattr(result, "pooler_output", None)
    images = None if pooled is None else shares.of(places, len(pooled))
    if images is None:
        return None
    entries: list[dict[str, Any]] = [{"pooler_output": part} for part in _parts(pooled, images)]
    tokens = [sum(len(image) for image in entry["pooler_output"]) for entry in entries]
    for layer in getattr(result, "deepstack_features", None) or ():
        if shares.alike:
            sizes = shares.of(places, len(layer))
        else:  # by image too, or a row a token
            sizes = next((sizes for sizes in (images, tokens) if sum(sizes) == len(layer)), None)
        if sizes is None:
            return None
        for entry, part in zip(entries, _parts(layer, sizes)):
            entry.setdefault("deepstack_features", []).append(part)
    return entries


def _parts(features: Any, sizes: Sequence[int]) -> list[Any]:
    """Features cut into parts of these lengths."""
    ends = list(accumulate(sizes))
    return [_part(features, end - size, end) for end, size in zip(ends, sizes)]


def _part(features: Any, begin: int, end: int) -> Any:
    part = features[begin:end]
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
