"""Which prompts may share a forward. Most families take the images of a batch behind one another in the first dimension
of every input; some do not (all images in one row of pixels, indices that count from the batch's first patch).

That is not taken on trust: the first two prompts that show some kind of input are run together and alone, and must have
the same hidden states, or prompts of that kind are run one at a time from then on, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.backbone import stands_apart
from mstar_engine.models.compatibility import forget_rope_deltas, ordinary_token_id
from mstar_engine.models.packed_row import in_words, most_difference
from mstar_engine.models.prompts import EncodedPrompt, joined_inputs
from mstar_engine.models.text_types import text_types

log = logging.getLogger(__name__)
MAX_PREFILL_BATCH = 16
"""Prompts of one shape that go through one forward; more only raises peak memory."""

Kind = frozenset[tuple[str, tuple[int, ...]]]


def kind_of(prompt: EncodedPrompt) -> Kind:
    """What is proven of a family, is proven of prompts of one kind: the names of their inputs and the shapes behind the
    first dimension, which counts images or patches."""
    images = {(name, tuple(value.shape[1:])) for name, value in prompt.inputs.items()}
    return frozenset(images | {(name, ()) for name in prompt.token_inputs})


class ImageBatches:
    """Splits prompts into those that share a forward of `model`; remembers what proved right."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.joined: dict[Kind, bool] = {}
        """By kind: whether its prompts share a forward."""
        self._twice: set[Kind] = set()
        """Kinds in which prompts of one image share a forward; nothing is known of those of two."""

    def split(self, prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
        """Places in `prompts`, by forward. To be called with no attention step set."""
        return [
            part
            for batch in same_shape(prompts)
            for part in ([batch] if self._shares([prompts[i] for i in batch]) else [[place] for place in batch])
        ]

    def joins(self, prompts: Sequence[EncodedPrompt]) -> bool:
        """Whether prompts of any length, padded to the right, go through one forward together, as in training. Told by
        the first two with images that can be concatenated, the same ones or others; True where there are none."""
        pictured = [prompt for prompt in prompts if prompt.inputs]
        for number, first in enumerate(pictured):
            kind = kind_of(first)
            if kind not in self.joined:
                same = [prompt for prompt in pictured[number + 1 :] if kind_of(prompt) == kind]
                other = next((prompt for prompt in same if _differ(first, prompt)), None)
                if other is not None:
                    self._decide(kind, [first, other])
                elif same and kind not in self._twice:
                    self._decide(kind, [first, same[0]])
            if not self.joined.get(kind, True):
                return False
        return True

    def _decide(self, kind: Kind, pair: Sequence[EncodedPrompt]) -> None:
        training = self.model.training
        self.model.eval()
        try:
            reason = self._reason(pair)
        finally:
            self.model.train(training)
        if reason is None and not _differ(*pair):
            self._twice.add(kind)  # what is wrong with two images would not show with one
            return
        self.joined[kind] = reason is None
        if reason is not None:
            log.warning(
                "model family %r: prompts with images are run one at a time, a batch of them does not compute what "
                "each does alone (%s)",
                self.model.config.model_type,
                reason,
            )

    def _shares(self, prompts: Sequence[EncodedPrompt]) -> bool:
        """Whether prompts of one shape go through one forward together."""
        if len(prompts) == 1 or not prompts[0].inputs:
            return True
        kind = kind_of(prompts[0])
        if kind not in self.joined:
            other = next((prompt for prompt in prompts if _differ(prompts[0], prompt)), None)
            if other is None:  # one image: what is wrong with two would not show
                return self._reason([prompts[0], prompts[1]]) is None
            self._decide(kind, [prompts[0], other])
        return self.joined[kind]

    @torch.no_grad()
    def _reason(self, pair: Sequence[EncodedPrompt]) -> str | None:
        """Why two prompts cannot share a forward, in words."""
        try:
            together = self._states(pair)
            alone = torch.cat([self._states([prompt]) for prompt in pair])
            alike = all(value.shape == pair[1].inputs[name].shape for name, value in pair[0].inputs.items())
            foreign = self._states([replace(pair[1], inputs=pair[0].inputs)]) if alike else None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a family's own code: alone it may run as it always did
            return in_words(error)
        finally:
            forget_rope_deltas(self.model)
        if together.shape != alone.shape:
            return f"hidden states of {tuple(together.shape)}, not {tuple(alone.shape)}"
        size = alone.norm(dim=1)
        difference = (together - alone).norm(dim=1) / size
        # The usual mistake shows the second prompt the first one's image, which may not matter much.
        most = most_difference(self.model)
        if foreign is not None:
            most = min(most, float((foreign[0] - alone[1]).norm() / size[1]) / 2 or 1.0)
        if not bool((difference <= most).all()):
            return f"hidden states differ by {float(difference.max()):.1%}"
        return None

    def _states(self, prompts: Sequence[EncodedPrompt]) -> Tensor:
        """The last hidden state of each prompt, in one forward, float32 [prompts, D]; logits where there is none."""
        forget_rope_deltas(self.model)
        ends = [len(prompt.input_ids) for prompt in prompts]
        inputs = padded_inputs(prompts, self.model) if len(set(ends)) > 1 else stack_inputs(prompts, self.model.device)
        part = self.model.base_model if stands_apart(self.model) else self.model
        output = part(**inputs, use_cache=False)
        states = output.last_hidden_state if "last_hidden_state" in output else output.logits
        return torch.stack([row[end - 1] for row, end in zip(states, ends)]).float()


def _differ(a: EncodedPrompt, b: EncodedPrompt) -> bool:
    return any(
        value.shape != b.inputs[name].shape or not torch.equal(value, b.inputs[name])
        for name, value in a.inputs.items()
    )


def stack_inputs(prompts: Sequence[EncodedPrompt], device: torch.device) -> dict[str, Tensor]:
    """Model inputs of prompts of one shape (see `same_shape`): input_ids int64 [prompts, length] and the rest."""
    inputs = {name: torch.cat([prompt.inputs[name] for prompt in prompts]).to(device) for name in prompts[0].inputs}
    for name in prompts[0].token_inputs:
        inputs[name] = torch.stack([prompt.token_inputs[name] for prompt in prompts]).to(device)
    tokens = torch.stack([prompt.input_ids for prompt in prompts]).to(device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **inputs}


def padded_inputs(prompts: Sequence[EncodedPrompt], model: PreTrainedModel) -> dict[str, Tensor]:
    """As `stack_inputs`, of prompts of any length, padded to the right with text, nothing masked."""
    pad_id = ordinary_token_id(model.config)
    length = max(len(prompt.input_ids) for prompt in prompts)
    inputs = joined_inputs(prompts)
    inputs["input_ids"] = torch.stack(
        [F.pad(prompt.input_ids, (0, length - len(prompt.input_ids)), value=pad_id) for prompt in prompts]
    )
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name, text in text_types(model, prompts[0].token_inputs).items():
        values = [prompt.token_inputs[name] for prompt in prompts]
        inputs[name] = torch.stack([F.pad(value, (0, length - len(value)), value=text) for value in values])
    return {name: value.to(model.device) for name, value in inputs.items()}


def same_shape(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Split into batches of one prompt length and one input shape: no padding, so no differences by masking."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        shapes = sorted((name, str(value.shape), str(value.dtype)) for name, value in prompt.inputs.items())
        alike.setdefault((len(prompt.input_ids), *shapes, *sorted(prompt.token_inputs)), []).append(index)
    return [
        indices[begin : begin + MAX_PREFILL_BATCH]
        for indices in alike.values()
        for begin in range(0, len(indices), MAX_PREFILL_BATCH)
    ]
