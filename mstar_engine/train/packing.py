"""Examples behind one another in one row, without padding, each attending to itself alone.

Positions start again with each example: from them transformers reads where examples begin, for its variable-length
flash attention; sdpa is replaced (see `packed_attention.py`). What a family makes of that is not taken on trust: the
first examples of a run must have the hidden states that they have alone, or the run pads.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.compatibility import forget_rope_deltas, rope_delta_modules
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import IGNORE, Batch, collate, image_inputs
from mstar_engine.train.packed_attention import packed_attention
from mstar_engine.types import TrainingExample

MOST_DIFFERENCE, MOST_DIFFERENCE_IN_HALF = 1e-3, 0.05
"""Of hidden states, relative to their norm: well above rounding, well below what a foreign example does."""


def pack(model: PreTrainedModel, examples: Sequence[TrainingExample], encoder: PromptEncoder) -> Batch:
    """The examples as one row, with `position_ids` among the inputs: [1, length], or [axes, 1, length] for families
    with multi-axis rotary embedding, text positions first.

    Raises ValueError as `collate` does; for a family that computes positions itself and offers no way to ask it; and
    for one with token types that are not for positions: they shape its attention (bidirectional in an image), which
    transformers does not carry over to packed rows.
    """
    prompts = [encoder.encode(example.problem) for example in examples]
    others = image_inputs(examples, prompts)
    names = {name: value.dtype for prompt in prompts for name, value in prompt.token_inputs.items()}
    if names and not rope_delta_modules(model):
        raise ValueError(f"its attention depends on {', '.join(names)}")
    ids, labels, positions, lengths = [], [], [], []
    token_inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for example, prompt in zip(examples, prompts):
        response = torch.as_tensor(example.response_ids).long()
        ids.append(torch.cat([prompt.input_ids, response]))
        labels.append(torch.cat([torch.full_like(prompt.input_ids, IGNORE), response]))
        lengths.append(len(ids[-1]))
        own = {}
        for name, dtype in names.items():
            padded = torch.zeros(lengths[-1], dtype=dtype)
            if name in prompt.token_inputs:
                padded[: len(prompt.input_ids)] = prompt.token_inputs[name]
                own[name] = padded[None]
            token_inputs[name].append(padded)
        positions.append(_positions(model, {"input_ids": ids[-1][None], **own, **prompt.inputs}))
    return Batch(
        inputs={
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat(positions, dim=-1),
            **{name: torch.cat(values)[None] for name, values in token_inputs.items()},
            **others,
        },
        labels=torch.cat(labels)[None],
        weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        tokens=sum(len(example.response_ids) for example in examples),
        owner=torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))[None],
        lengths=tuple(lengths),
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


@torch.no_grad()
def why_not_packed(model: PreTrainedModel, examples: Sequence[TrainingExample], encoder: PromptEncoder) -> str | None:
    """Why the examples cannot share a row, in words; None when packed they have the hidden states they have alone."""
    training = model.training
    model.eval()
    most = MOST_DIFFERENCE_IN_HALF if model.dtype.itemsize == 2 else MOST_DIFFERENCE
    try:
        batch = pack(model, examples, encoder).to(model.device)
        with packed_attention(model, batch.lengths):
            together = hidden_states(model, **batch.inputs)[0].float()
        for number, example in enumerate(examples):
            forget_rope_deltas(model)
            alone = hidden_states(model, **collate([example], encoder).to(model.device).inputs)[0].float()
            difference = (together[batch.owner[0] == number] - alone).norm() / alone.norm()
            if not difference <= most:
                return f"hidden states of packed examples differ from those of single ones by {difference:.1%}"
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    finally:
        forget_rope_deltas(model)
        model.train(training)
    return None
