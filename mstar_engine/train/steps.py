"""Fitting of step scores: examples with labels at step ends, and the loss on them.

The loss of a step is the cross-entropy of its label under the head's logits (softmax over the label rows, or sigmoid),
for hard labels (0 or 1) and soft ones (the share of completions that came out right) alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.image_batches import ImageBatches
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.reward.head import RewardHead
from mstar_engine.train.batch_norm import keep_statistics
from mstar_engine.train.collate import collate, micro_batches
from mstar_engine.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepExample:
    """A response as the process reward model reads it: `response_ids` behind the prompt, `positions` int32 [steps] of
    the tokens that are scored, `labels` float32 [steps] in [0, 1], the wanted scores there."""

    problem: Problem
    response_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weight: float = 1.0


class StepClassifier(nn.Module):
    """A backbone with a reward head: the trainable whole."""

    def __init__(self, model: PreTrainedModel, head: RewardHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
        """Logits [S, L] at (row, column) of a padded batch; see `collate.Batch` for `inputs`."""
        return self.head(hidden_states(self.model, **inputs)[rows, columns])


class StepObjective:
    """What the trainer minimises on StepExamples: the weighted mean over steps of the cross-entropy."""

    def __init__(self) -> None:
        self._batches: ImageBatches | None = None

    def count(self, examples: Sequence[StepExample]) -> int:
        """Steps of some examples."""
        return sum(len(example.labels) for example in examples)

    def runs(
        self,
        model: StepClassifier,
        examples: Sequence[StepExample],
        encoder: PromptEncoder,
        max_tokens: int | None,
        max_examples: int | None,
    ) -> Iterator[list[StepExample]]:
        """The examples, cut into what fits one forward pass; see `micro_batches`."""
        if self._batches is None or self._batches.model is not model.model:
            self._batches = ImageBatches(model.model)
        return micro_batches(examples, encoder, max_tokens, max_examples, joins=self._batches.joins)

    def loss(
        self, model: StepClassifier, examples: Sequence[StepExample], encoder: PromptEncoder, pad_id: int
    ) -> Tensor:
        """The sum over steps of their loss, in nats; a scalar with a gradient."""
        device = next(model.parameters()).device
        batch = collate(examples, encoder, pad_id, model.model).to(device)
        begins = [len(encoder.encode(example.problem).input_ids) for example in examples]
        counts = [len(example.labels) for example in examples]
        rows = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(counts)).to(device)
        columns = np.concatenate([begin + example.positions for begin, example in zip(begins, examples)])
        labels = torch.from_numpy(np.concatenate([example.labels for example in examples])).float().to(device)
        keep_statistics(model)
        logits = model(batch.inputs, rows, torch.from_numpy(columns).long().to(device)).float()
        return torch.dot(step_losses(logits, labels), batch.weights[rows])


def step_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each step, [S]: logits [S, L] with the positive label first, labels [S] in [0, 1]."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
    logprobs = F.log_softmax(logits, dim=-1)
    negative = torch.logsumexp(logprobs[:, 1:], dim=-1)
    return -(labels * logprobs[:, 0] + (1 - labels) * negative)
