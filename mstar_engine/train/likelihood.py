"""The negative log-likelihood of responses: logits are computed only where there is a response token to predict."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import IGNORE, Batch, collate
from mstar_engine.types import TrainingExample


class Likelihood:
    """The trainer's usual objective: the negative log-likelihood of responses, over their tokens."""

    def count(self, examples: Sequence[TrainingExample]) -> int:
        """Response tokens of some examples."""
        return sum(len(example.response_ids) for example in examples)

    def loss(
        self, model: nn.Module, examples: Sequence[TrainingExample], encoder: PromptEncoder, pad_id: int
    ) -> Tensor:
        """`response_nll` of the examples, padded together."""
        return response_nll(model, collate(examples, encoder, pad_id).to(next(model.parameters()).device))


def response_nll(model: nn.Module, batch: Batch) -> Tensor:
    """The weighted sum over a batch's response tokens of -log p(token), in nats; a scalar with a gradient."""
    targets = batch.labels[:, 1:]
    positions = (targets != IGNORE).any(0).nonzero()[:, 0]
    targets = targets[:, positions]
    # Most families project hidden states at chosen positions only; the vocabulary is the costly dimension.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = model(**batch.inputs, use_cache=False, logits_to_keep=positions).logits
    else:
        logits = model(**batch.inputs, use_cache=False).logits[:, positions]
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    losses = F.cross_entropy(logits[rows, columns].float(), targets[rows, columns], reduction="none")
    return torch.dot(losses, batch.weights[rows])
