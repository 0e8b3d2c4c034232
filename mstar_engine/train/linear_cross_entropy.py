"""The cross-entropy of a linear layer's logits without the logits: rows go through the vocabulary some at a time.

    loss = sum over rows n of weight[n] * -log softmax(cap(hidden[n] @ W^T + b))[target[n]]

The gradients with respect to hidden states, W and b are computed in the same pass, so that at no time more than
`MOST_LOGITS` logits exist (and, with a soft cap, their derivative). The product is in the precision of its operands, as
the layer's own would be; everything behind it, and the sums over rows, are in float32 (float64 for float64 operands).

N: rows, D: hidden width, V: vocabulary, C: rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOGITS = 2**26
"""256 MiB in float32: 441 rows of a vocabulary of 152k, enough for the product to be bound by arithmetic."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The weighted sum over rows of -log p(target), in nats; a scalar, float32 or wider, with a gradient.

    `hidden` [N, D] and `weight` [V, D] of one floating type, `bias` [V], `targets` int64 [N] in 0 .. V - 1,
    `row_weights` [N] (constants: they get no gradient). `softcap` c replaces a logit x by c * tanh(x / c). `chunk`:
    rows at a time.
    """
    if chunk is None:
        chunk = max(1, MOST_LOGITS // weight.shape[0])
    if not torch.is_grad_enabled():  # the function below sees only what its inputs say
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, row_weights, softcap, chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward, where the logits are; the backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor,
        softcap: float | None,
        chunk: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        row_weights = row_weights.to(wide)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        for begin in range(0, len(hidden), chunk):
            rows = slice(begin, begin + chunk)
            h_CD, target_C, weight_C = hidden[rows], targets[rows, None], row_weights[rows]
            logits_CV = F.linear(h_CD, weight, bias).to(wide)
            if softcap is not None:
                tanh_CV = logits_CV.div_(softcap).tanh_()
                logits_CV = tanh_CV * softcap
            total_C1 = logits_CV.logsumexp(-1, keepdim=True)
            loss += torch.dot((total_C1 - logits_CV.gather(1, target_C))[:, 0], weight_C)
            if not any(ctx.needs_input_grad[:3]):
                continue
            # In place: from here on the logits are their own gradient.
            grad_CV = logits_CV.sub_(total_C1).exp_()
            grad_CV.scatter_add_(1, target_C, grad_CV.new_full((1, 1), -1.0).expand(len(h_CD), 1))
            grad_CV.mul_(weight_C[:, None])
            if softcap is not None:
                grad_CV.mul_(tanh_CV.square_().neg_().add_(1.0))
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            narrow_CV = grad_CV.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow_CV, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, narrow_CV.t(), h_CD)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if gradient is None else torch.mul(gradient, grad_loss, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.types)
        ]
        return (*gradients, None, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the (wider) type of `total`."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:  # half-precision operands, float32 sums: what tensor cores do anyway
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
