"""Prompts behind one another in one row, without padding: what a model needs to keep each to itself.

Positions start again with each example: from them transformers reads where examples begin, for its variable-length
flash attention; sdpa is replaced (see `packed_attention.py`). What a family makes of that is not taken on trust: who
packs compares some examples with what they are alone, within `most_difference`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.compatibility import rope_delta_modules
from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.text_types import text_types

MOST_DIFFERENCE, MOST_DIFFERENCE_IN_HALF = 1e-3, 0.05
"""Of hidden states or logits, relative to their norm: well above rounding, well below what a foreign example does."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRow:
    """Model inputs of one row of examples of `lengths` tokens.

    `inputs`: input_ids int64 [1, length], position_ids [1, length], or [axes, 1, length] for families with multi-axis
    rotary embedding, text positions first; token inputs [1, length]; and the processor's other outputs. `rope_deltas`:
    by example, what is added to a sequence index behind it to get its rotary position.
    """

    inputs: dict[str, Tensor]
    lengths: tuple[int, ...]
    rope_deltas: tuple[int, ...]


def packed_row(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    others: Mapping[str, Tensor],
    responses: Sequence[Tensor] | None = None,
) -> PackedRow:
    """The prompts, each with its response (int64 [tokens]) behind it where there are such, as one row. `others` are the
    prompts' inputs that do not count tokens, joined.

    Raises ValueError for a family that computes positions itself and offers no way to ask it; and for one with token
    types that are not for positions: they shape its attention (bidirectional in an image), which transformers does not
    carry over to packed rows.
    """
    names = {name: value.dtype for prompt in prompts for name, value in prompt.token_inputs.items()}
    if names and not rope_delta_modules(model):
        raise ValueError(f"its attention depends on {', '.join(names)}")
    ids, positions, deltas = [], [], []
    types = dict.fromkeys(names, 0) if responses is None else text_types(model, names)
    token_inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for number, prompt in enumerate(prompts):
        ids.append(prompt.input_ids if responses is None else torch.cat([prompt.input_ids, responses[number]]))
        own = {}
        for name, dtype in names.items():
            padded = torch.full((len(ids[-1]),), types[name], dtype=dtype)
            if name in prompt.token_inputs:
                padded[: len(prompt.input_ids)] = prompt.token_inputs[name]
                own[name] = padded[None]
            token_inputs[name].append(padded)
        positions.append(_positions(model, {"input_ids": ids[-1][None], **own, **prompt.inputs}))
        axes = positions[-1][1:] if positions[-1].dim() == 3 else positions[-1]
        deltas.append(int(axes.max()) + 1 - len(ids[-1]))
    return PackedRow(
        inputs={
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat(positions, dim=-1),
            **{name: torch.cat(values)[None] for name, values in token_inputs.items()},
            **others,
        },
        lengths=tuple(len(example) for example in ids),
        rope_deltas=tuple(deltas),
    )


def _positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Positions of one example, as the model computes them itself."""
    text = torch.arange(inputs["input_ids"].shape[1])[None]
    modules = rope_delta_modules(model)
    if not modules:
        return text
    index = next((module.get_rope_index for module in modules if hasattr(module, "get_rope_index")), None)
    if index is None:
        raise ValueError("it computes positions inside its forward")
    if len(inputs) == 1:  # no image: the model counts tokens on every axis
        return text.expand(4, 1, -1)
    asked = inspect.signature(index).parameters
    axes, _ = index(**{name: value for name, value in inputs.items() if name in asked})
    return torch.cat([text[None], axes])


def most_difference(model: PreTrainedModel) -> float:
    """How far packed may be from alone, relative to the norm."""
    return MOST_DIFFERENCE_IN_HALF if model.dtype.itemsize == 2 else MOST_DIFFERENCE


def in_words(error: Exception) -> str:
    """The first line of an error, as the reason why a family does not pack."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
