"""Master weights: float32 copies of bfloat16 parameters, for updates smaller than bfloat16 can hold.

A bfloat16 weight has 8 bits of mantissa, so an update below 1/512 of it is lost; Adam's are a hundredth of that. The
optimizer updates the masters, and the parameters, which rollout runs on, are the masters rounded. Gradients become
float32 as soon as the backward pass has made one, and are summed over micro-batches there: no more than one parameter
at a time has a bfloat16 gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MasterWeights:
    """The masters of `parameters`; `tensors` in their order. ValueError for a parameter that is not bfloat16."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        other = [parameter.dtype for parameter in parameters if parameter.dtype != torch.bfloat16]
        if other:
            raise ValueError(f"train.bf16=true: the model has parameters of {other[0]}; allowed: model.dtype=bfloat16")
        self.parameters = list(parameters)
        self.tensors = [parameter.detach().float() for parameter in parameters]
        self._of = {id(parameter): tensor for parameter, tensor in zip(parameters, self.tensors)}

    def of(self, parameter: nn.Parameter) -> Tensor:
        """The master of a parameter."""
        return self._of[id(parameter)]

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """While it lasts, every gradient is added to its master's, in float32, and freed."""
        handles = [parameter.register_post_accumulate_grad_hook(self._gather) for parameter in self.parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gather(self, parameter: Tensor) -> None:
        master = self._of[id(parameter)]
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters."""
        for parameter, master in zip(self.parameters, self.tensors):
            parameter.copy_(master)

    @torch.no_grad()
    def restore(self, saved: Sequence[Tensor | None]) -> None:
        """Put saved masters back; those that were not saved start from the parameters."""
        for parameter, master, tensor in zip(self.parameters, self.tensors, saved, strict=True):
            master.copy_(parameter if tensor is None else tensor)
