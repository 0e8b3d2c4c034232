"""Prompts of different lengths through one forward: behind one another in one row, each attending to itself alone.

What a family makes of such a row is not taken on trust. The first that shows some kind of input is run both ways, and
every prompt's last logits must be what they are by shape; or prompts go on by shape, and the log says why, once.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.attention import attention_step
from mstar_engine.models.compatibility import forget_rope_deltas
from mstar_engine.models.image_batches import Kind, kind_of
from mstar_engine.models.packed_row import in_words, most_difference, packed_row
from mstar_engine.models.prompts import EncodedPrompt, joined_inputs
from mstar_engine.rollout.image_features import ImageFeatureCache
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.steps import PackedPrefillStep

log = logging.getLogger(__name__)


class Prefilled(NamedTuple):
    """Of some prompts, in their order: the last row of logits [prompts, V] and the rotary offsets (see `PackedRow`)."""

    logits: Tensor
    rope_deltas: list[int]


ByShape = Callable[[Sequence[EncodedPrompt], Sequence[Tensor]], Prefilled]
"""Runs prompts without packing, given each prompt's slots."""


class PackedPrefill:
    """Prefills prompts in packed rows for as long as that proves right; kept over waves. `refused` says why not."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.refused: str | None = None
        self._proven: set[Kind] = set()

    def run(
        self,
        prompts: Sequence[EncodedPrompt],
        slots: Sequence[Tensor],
        cache: KVCache,
        backend: str,
        features: ImageFeatureCache,
        by_shape: ByShape,
    ) -> Prefilled:
        """Prefill a plan's prompts, their K and V into `slots` (int32 [length] each). Out of memory is raised."""
        rows: list[Tensor | None] = [None] * len(prompts)
        deltas = [0] * len(prompts)
        for places in joinable(prompts):
            part = [prompts[place] for place in places]
            where = [slots[place] for place in places]
            found = None
            if self.refused is None and len({_shape(prompt) for prompt in part}) > 1:
                found = self._row(part, where, cache, backend, features, by_shape)
            found = found or by_shape(part, where)
            for place, logits, delta in zip(places, found.logits, found.rope_deltas, strict=True):
                rows[place], deltas[place] = logits, delta
        return Prefilled(torch.stack(rows), deltas)  # type: ignore[arg-type]

    def _row(
        self,
        prompts: Sequence[EncodedPrompt],
        slots: Sequence[Tensor],
        cache: KVCache,
        backend: str,
        features: ImageFeatureCache,
        by_shape: ByShape,
    ) -> Prefilled | None:
        """One row of prompts; None, and `refused` set, where that failed."""
        kind = frozenset(place for prompt in prompts for place in kind_of(prompt))
        proven = kind in self._proven
        # Features that are kept would hide what the vision tower makes of images of several prompts.
        used = features if proven else ImageFeatureCache(self.model, features.capacity)
        try:
            packed = self._forward(prompts, slots, cache, backend, used)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a family's own code: whatever it raises, it may run as it always did
            self._refuse(in_words(error))
            return None
        if proven:
            return packed
        alone = by_shape(prompts, slots)  # behind the packed row: what it left in the cache is no longer there
        reason = _unlike(packed, alone, most_difference(self.model))
        if reason is not None:
            self._refuse(reason)
        else:
            self._proven.add(kind)
        return alone

    def _forward(
        self,
        prompts: Sequence[EncodedPrompt],
        slots: Sequence[Tensor],
        cache: KVCache,
        backend: str,
        features: ImageFeatureCache,
    ) -> Prefilled:
        if "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            raise ValueError("it computes the logits of every position")
        device = cache.shape.device
        row = packed_row(self.model, prompts, joined_inputs(prompts))
        ends = torch.tensor(list(accumulate(row.lengths)), device=device)
        step = PackedPrefillStep(cache, torch.cat(list(slots)).to(device), backend, row.lengths)
        forget_rope_deltas(self.model)
        with attention_step(step), features.prompts(prompts):
            inputs = {name: value.to(device) for name, value in row.inputs.items()}
            output = self.model(**inputs, use_cache=False, logits_to_keep=ends - 1)
        return Prefilled(output.logits[0], list(row.rope_deltas))

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        family = self.model.config.model_type
        log.warning("rollout: prompts are prefilled by shape, model family %r cannot pack them (%s)", family, reason)


def joinable(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Split into prompts whose inputs can be concatenated along their first dimension."""
    parts: list[tuple[dict[str, object], list[int]]] = []
    for index, prompt in enumerate(prompts):
        shapes = {name: (value.shape[1:], value.dtype) for name, value in prompt.inputs.items()}
        for seen, places in parts:
            if all(seen.get(name, shape) == shape for name, shape in shapes.items()):
                seen.update(shapes)
                places.append(index)
                break
        else:
            parts.append((dict(shapes), [index]))
    return [places for _, places in parts]


def _shape(prompt: EncodedPrompt) -> tuple[object, ...]:
    return len(prompt.input_ids), *sorted((name, tuple(value.shape)) for name, value in prompt.inputs.items())


def _unlike(packed: Prefilled, alone: Prefilled, most: float) -> str | None:
    """What tells packed prompts from prompts by shape, in words; None where nothing does."""
    if packed.logits.shape != alone.logits.shape:
        return f"logits of {tuple(packed.logits.shape)}, not {tuple(alone.logits.shape)}"
    if packed.rope_deltas != alone.rope_deltas:
        return f"rotary offsets {packed.rope_deltas}, not {alone.rope_deltas}"
    difference = (packed.logits.float() - alone.logits.float()).norm(dim=1) / alone.logits.float().norm(dim=1)
    if not bool((difference <= most).all()):
        return f"logits of packed prompts differ from those of single ones by {float(difference.max()):.1%}"
    return None
