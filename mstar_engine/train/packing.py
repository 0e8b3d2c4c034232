"""Examples behind one another in one row, without padding, each attending to itself alone.

What a family makes of that (see `models/packed_row.py`) is not taken on trust: the first examples of a run must have
the hidden states that they have alone, or the run pads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.compatibility import forget_rope_deltas
from mstar_engine.models.packed_attention import packed_attention
from mstar_engine.models.packed_row import in_words, most_difference, packed_row
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import IGNORE, Batch, collate, image_inputs
from mstar_engine.types import TrainingExample


def pack(model: PreTrainedModel, examples: Sequence[TrainingExample], encoder: PromptEncoder) -> Batch:
    """The examples as one row, with `position_ids` among the inputs (see `PackedRow`).

    Raises ValueError as `collate` and `packed_row` do.
    """
    prompts = [encoder.encode(example.problem) for example in examples]
    others = image_inputs(examples, prompts)
    responses = [torch.as_tensor(example.response_ids).long() for example in examples]
    row = packed_row(model, prompts, others, responses)
    labels = [
        part
        for prompt, response in zip(prompts, responses)
        for part in (torch.full_like(prompt.input_ids, IGNORE), response)
    ]
    return Batch(
        inputs=row.inputs,
        labels=torch.cat(labels)[None],
        weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        tokens=sum(len(response) for response in responses),
        owner=torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(row.lengths))[None],
        lengths=row.lengths,
    )


@torch.no_grad()
def why_not_packed(model: PreTrainedModel, examples: Sequence[TrainingExample], encoder: PromptEncoder) -> str | None:
    """Why the examples cannot share a row, in words; None when packed they have the hidden states they have alone."""
    training = model.training
    model.eval()
    most = most_difference(model)
    try:
        batch = pack(model, examples, encoder).to(model.device)
        with packed_attention(model, batch.lengths):
            together = hidden_states(model, **batch.inputs)[0].float()
        for number, example in enumerate(examples):
            forget_rope_deltas(model)
            alone = hidden_states(model, **collate([example], encoder, model=model).to(model.device).inputs)[0].float()
            difference = (together[batch.owner[0] == number] - alone).norm() / alone.norm()
            if not difference <= most:
                return f"hidden states of packed examples differ from those of single ones by {difference:.1%}"
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        return in_words(error)
    finally:
        forget_rope_deltas(model)
        model.train(training)
    return None
