"""The negative log-likelihood of responses: logits are computed only where there is a response token to predict."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstar_engine.train.collate import IGNORE, Batch


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
