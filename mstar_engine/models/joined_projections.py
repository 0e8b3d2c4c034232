"""The query, key and value projections of a language model's layers as one matrix product, for decode steps on a GPU.

With grouped-query heads the key and value projections are too small to fill the chip: in Qwen2.5-VL-7B with 128 rows
the three took 27 us a layer on an H200, where one read of their weights takes 8. The joined weights are a copy (6% of a
7B model), brought up to date by `refresh`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mstar_engine.models.attention import language_configs

NAMES = ("q_proj", "k_proj", "v_proj")


class _Joined:
    """The projections of one layer. Whichever is asked first computes all three; the others take theirs."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        self.parts = parts
        self.sizes = [part.out_features for part in parts]
        like = parts[0].weight
        self.weight = torch.empty(sum(self.sizes), parts[0].in_features, dtype=like.dtype, device=like.device)
        self.bias = None if parts[0].bias is None else torch.empty_like(self.weight[:, 0])
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def refresh(self) -> None:
        torch.cat([part.weight for part in self.parts], out=self.weight)
        if self.bias is not None:
            torch.cat([part.bias for part in self.parts], out=self.bias)

    def output(self, index: int, x: Tensor) -> Tensor:
        if self._input is not x or index not in self._outputs:
            self._input = x
            self._outputs = dict(enumerate(F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)))
        found = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return found

    @contextmanager
    def active(self) -> Iterator[None]:
        for index, part in enumerate(self.parts):
            part.forward = lambda x, index=index: self.output(index, x)
        try:
            yield
        finally:
            self._input, self._outputs = None, {}
            for part in self.parts:
                del part.forward


class JoinedProjections:
    """Of every attention layer of `model` whose projections are plain linear ones; `refresh` before the first use.

    Layers with adapters, quantised weights, hooks or biases on some projections only are left as they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        configs = language_configs(model)
        self._layers: list[_Joined] = []
        for module in model.modules():
            parts = [getattr(module, name, None) for name in NAMES]
            is_language = any(getattr(module, "config", None) is config for config in configs)
            if is_language and _can_be_joined(parts):
                self._layers.append(_Joined(parts))

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights as they are now: a copy of them on the device."""
        for layer in self._layers:
            layer.refresh()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the model's forward uses the joined weights; afterwards it is as it was."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(layer.active())
            yield


def _can_be_joined(parts: list[nn.Module | None]) -> bool:
    if any(type(part) is not nn.Linear for part in parts):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts):
        return False
    if any(type(tensor) is not nn.Parameter for part in parts for tensor in part.parameters()):
        return False  # quantised or sharded: its class computes, not the bytes
    alike = {(p.in_features, p.weight.dtype, p.weight.device, p.bias is None) for p in parts}
    return len(alike) == 1 and parts[0].weight.device.type != "meta"
