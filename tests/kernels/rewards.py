"""Cases for the step_rewards tests, and the forms that they run: C++ under each instruction set, and Triton.

Triton runs on a CUDA device where there is one, and in its interpreter in a process of its own: TRITON_INTERPRET counts
when Triton is imported.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from mstar_kernels import step_rewards as module
from mstar_kernels.dispatch import extension
from mstar_kernels.step_rewards import StepRewards, step_rewards

ISAS = ("portable", "avx2", "avx512")
RUNNABLE = ISAS[: ISAS.index(extension().active_isa()) + 1] if extension() is not None else ()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
FORMS = [*RUNNABLE, *(["interpreted"] if INTERPRETED else [CUDA])]


@dataclass(frozen=True)
class Case:
    """Inputs of one call."""

    hidden: Tensor
    label_rows: Tensor
    step_positions: Tensor
    response_steps: Tensor
    bias: Tensor | None = None

    @property
    def head(self) -> str:
        return "sigmoid" if len(self.label_rows) == 1 else "softmax"

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, target: torch.dtype | str) -> Case:
        """In another precision (hidden and label rows), or on another device."""
        if isinstance(target, torch.dtype):
            return dataclasses.replace(self, hidden=self.hidden.to(target), label_rows=self.label_rows.to(target))
        return Case(**{name: None if tensor is None else tensor.to(target) for name, tensor in self.tensors.items()})


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_case(
    dim: int, response_lengths: list[int], labels: int = 2, bias: bool = False, tokens: int = 90, seed: int = 0
) -> Case:
    """Logits near unit variance; positions in any order, some twice; NaN in every token that no step names."""
    generator = torch.Generator().manual_seed(1000 * dim + seed)
    hidden = torch.randn(tokens, dim, generator=generator)
    label_rows = torch.randn(labels, dim, generator=generator) * dim**-0.5
    positions = torch.randint(0, tokens, (sum(response_lengths),), generator=generator, dtype=torch.int32)
    unused = torch.ones(tokens, dtype=torch.bool)
    unused[positions.long()] = False
    hidden[unused] = math.nan
    bounds = ints(*accumulate(response_lengths, initial=0))
    return Case(hidden, label_rows, positions, bounds, torch.randn(labels, generator=generator) * 0.5 if bias else None)


def run(form: str, case: Case, reduction: str = "min", **options: bool) -> StepRewards:
    if form in ISAS:
        c = case
        found = module._cpu(
            c.hidden, c.label_rows, c.bias, c.step_positions, c.response_steps, c.head, reduction, isa=form
        )
        if not options.get("deferred"):
            module.refuse_unfit(found.scores, c.response_steps)
        return found
    backend = form if form in ("auto", "reference") else "triton"
    arguments = case.to("cuda" if form == "cuda" else "cpu")
    found = step_rewards(**arguments.tensors, head=case.head, reduction=reduction, backend=backend, **options)
    return StepRewards(found.scores.cpu(), found.reduced.cpu(), found.weakest.cpu())
