"""The negative log-likelihood of responses: logits are computed only where there is a response token to predict.

Where they would be many, or on CUDA, they are not kept either: hidden states go through the output head and the
cross-entropy a few rows at a time. Both ways compute the same sum.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstar_engine.models.backbone import OutputHead, hidden_states, output_head
from mstar_engine.models.image_batches import ImageBatches
from mstar_engine.models.packed_attention import packed_attention
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.batch_norm import keep_statistics
from mstar_engine.train.collate import IGNORE, Batch, collate, micro_batches
from mstar_engine.train.liger import UseLiger, liger_sum, use_liger
from mstar_engine.train.linear_cross_entropy import linear_cross_entropy
from mstar_engine.train.packing import pack, why_not_packed
from mstar_engine.types import TrainingExample

PLAIN_LOGITS = 2**24
"""Up to this many logits (64 MiB in float32) are simply computed, on a processor."""
TRIED = 4
"""Examples that must come out of a packed row as they do alone, before a run packs."""

log = logging.getLogger(__name__)


class Likelihood:
    """The trainer's usual objective: the negative log-likelihood of responses, over their tokens.

    With `packing`, examples share a row where the model allows it (see `packing.py`); where it does not, the log says
    why, once. `use_liger_kernel`: whether Liger sums the loss of rows of one weight (see `liger.py`).
    """

    def __init__(self, *, packing: bool = False, use_liger_kernel: UseLiger = "auto") -> None:
        self.packing = packing
        self.use_liger_kernel = use_liger_kernel
        self._packs: bool | None = None  # None: no two examples have been tried yet
        self._batches: ImageBatches | None = None
        self._head: OutputHead | None = None
        self._probed: nn.Module | None = None

    def count(self, examples: Sequence[TrainingExample]) -> int:
        """Response tokens of some examples."""
        return sum(len(example.response_ids) for example in examples)

    def runs(
        self,
        model: nn.Module,
        examples: Sequence[TrainingExample],
        encoder: PromptEncoder,
        max_tokens: int | None,
        max_examples: int | None,
    ) -> Iterator[list[TrainingExample]]:
        """The examples, cut into what fits one forward pass; see `micro_batches`."""
        if self.packing and self._packs is None:
            some = (run for run in micro_batches(examples, encoder, max_examples=TRIED) if len(run) > 1)
            if (first := next(some, None)) is not None:
                reason = why_not_packed(model, first, encoder)
                self._packs = reason is None
                if reason is not None:
                    family = model.config.model_type
                    log.warning("train.packing: examples are padded, model family %r cannot pack (%s)", family, reason)
        if self._batches is None or self._batches.model is not model:
            self._batches = ImageBatches(model)
        packed, joins = bool(self._packs), self._batches.joins
        return micro_batches(examples, encoder, max_tokens, max_examples, packed=packed, joins=joins)

    def loss(
        self, model: nn.Module, examples: Sequence[TrainingExample], encoder: PromptEncoder, pad_id: int
    ) -> Tensor:
        """`response_nll` of the examples, together in one forward pass."""
        device = next(model.parameters()).device
        packed = self._packs and len(examples) > 1
        batch = (pack(model, examples, encoder) if packed else collate(examples, encoder, pad_id, model)).to(device)
        keep_statistics(model)
        head = self._output_head(model, batch.tokens, device)
        one_weight = len({example.weight for example in examples}) == 1
        liger = head is not None and one_weight and use_liger(self.use_liger_kernel, device)
        return response_nll(model, batch, head, liger=liger)

    def _output_head(self, model: nn.Module, rows: int, device: torch.device) -> OutputHead | None:
        """The head to put `rows` hidden states through by parts; None where all of their logits are to be computed."""
        if device.type != "cuda" and rows * _vocabulary(model) <= PLAIN_LOGITS:
            return None
        if self._probed is not model:
            self._probed, self._head = model, output_head(model)
            if self._head is None:
                log.warning("train: %s computes all logits of a batch at once", type(model).__name__)
        return self._head


def _vocabulary(model: nn.Module) -> int:
    """Logits of a position, 0 where the model has no output head to tell by."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return 0 if head is None else head.weight.shape[0]


def response_nll(model: nn.Module, batch: Batch, head: OutputHead | None = None, *, liger: bool = False) -> Tensor:
    """The weighted sum over a batch's response tokens of -log p(token), in nats; a scalar with a gradient.

    With the model's `head` no more logits exist at a time than `linear_cross_entropy` allows; `liger` (for examples of
    one weight) has Liger do the same.
    """
    targets = batch.labels[:, 1:]
    if head is not None:
        rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
        with packed_attention(model, batch.lengths):
            hidden = hidden_states(model, **batch.inputs)[rows, columns]
        wanted = targets[rows, columns]
        linear = head.linear
        if liger:
            return batch.weights[0] * liger_sum(hidden, linear.weight, wanted, linear.bias, head.softcap)
        weights = batch.weights_at(rows, columns)
        return linear_cross_entropy(hidden, linear.weight, wanted, weights, bias=linear.bias, softcap=head.softcap)
    positions = (targets != IGNORE).any(0).nonzero()[:, 0]
    targets = targets[:, positions]
    # Most families project hidden states at chosen positions only; the vocabulary is the costly dimension.
    with packed_attention(model, batch.lengths):
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            logits = model(**batch.inputs, use_cache=False, logits_to_keep=positions).logits
        else:
            logits = model(**batch.inputs, use_cache=False).logits[:, positions]
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    losses = F.cross_entropy(logits[rows, columns].float(), targets[rows, columns], reduction="none")
    return torch.dot(losses, batch.weights_at(rows, positions[columns]))
