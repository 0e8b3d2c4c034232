"""The head of a process reward model: from the hidden state at the end of a step to the logits of its labels.

Only the label rows exist: at no time is there a logit of any other token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RewardHead(nn.Module):
    """`kind` "label_tokens", "two_class" or "scalar"; see `forms.PrmForm`.

    "label_tokens" reads two rows of `output` (the model's own output head, whose parameters stay the model's);
    the others own `layers`, with ReLU between. The logits have the positive label first.
    """

    def __init__(
        self,
        kind: str,
        *,
        output: nn.Linear | None = None,
        label_ids: Sequence[int] = (),
        layers: Sequence[nn.Linear] = (),
        positive: int = 1,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.label_ids = tuple(label_ids)
        self.layers = nn.ModuleList(layers)
        self.positive = positive
        self._output = (output,)  # in a tuple: no submodule, so its parameters are counted and saved once

    def label_rows(self) -> tuple[Tensor, Tensor | None]:
        """The rows that give the logits, [L, D], positive label first, and their bias [L]; L is 2, or 1 ("scalar")."""
        if self.kind == "label_tokens":
            (output,) = self._output
            rows = list(self.label_ids)
        else:
            output = self.layers[-1]
            rows = [0] if self.kind == "scalar" else [self.positive, 1 - self.positive]
        return output.weight[rows], None if output.bias is None else output.bias[rows]

    def transform(self, hidden: Tensor) -> Tensor:
        """What lies before the rows: all layers but the last, on hidden states [S, D]."""
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        return hidden

    @property
    def deep(self) -> bool:
        """Whether `transform` does anything."""
        return len(self.layers) > 1

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [S, L] of hidden states [S, D] at step ends, with a gradient."""
        rows, bias = self.label_rows()
        return F.linear(self.transform(hidden), rows, bias)

    @property
    def activation(self) -> str:
        """How logits become a score: "softmax" or "sigmoid"."""
        return "sigmoid" if self.kind == "scalar" else "softmax"


def fresh_layers(kind: str, width: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> list[nn.Linear]:
    """Untrained layers for a head that has its own ("two_class", "scalar"): zero bias, small seeded weights."""
    if kind == "label_tokens":
        return []
    layer = nn.Linear(width, 1 if kind == "scalar" else 2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * width**-0.5 * 0.1)
        layer.bias.zero_()
    return [layer.to(device=device, dtype=dtype)]
