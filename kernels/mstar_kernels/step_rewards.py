"""Scores of reasoning steps from final hidden states, and their reduction to one reward a response, in one pass.

The scoring head of a process reward model (M-STaR, section 3.2: the reward of a response is the least of its step
scores). Only the rows of the label tokens are multiplied and only at step ends: neither [tokens, vocabulary] logits nor
a copy of the scored hidden states exists. A response's result does not depend on the rest of the call.
Legend: T tokens, D hidden size, L label rows, S steps, N responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mstar_kernels import reference
from mstar_kernels.dispatch import extension, resolve

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
HEADS = ("softmax", "sigmoid")
REDUCTIONS = ("min", "mean", "product", "last")
AVAILABLE = ("triton", "cpu", "reference")


@dataclass(frozen=True, slots=True)
class StepRewards:
    """What `step_rewards` found.

    scores: float32 [S], in [0, 1].
    reduced: float32 [N], one reward a response.
    weakest: int32 [N], index within the response of its lowest step score, the lowest index on a tie.
    """

    scores: Tensor
    reduced: Tensor
    weakest: Tensor


@torch.no_grad()
def step_rewards(
    hidden: Tensor,
    label_rows: Tensor,
    step_positions: Tensor,
    response_steps: Tensor,
    *,
    bias: Tensor | None = None,
    head: str = "softmax",
    reduction: str = "min",
    backend: str = "auto",
    checked: bool = False,
    deferred: bool = False,
) -> StepRewards:
    """Score S steps of N responses, and reduce the scores of each response. Not differentiable.

    Args:
        hidden: [T, D], float32, bfloat16 or float16, contiguous: final hidden states, of any tokens.
        label_rows: [L, D], contiguous, hidden's dtype or float32: rows of the output head.
        step_positions: int32 [S]: row of `hidden` at which each step is scored; the steps of one response together,
            responses in order.
        response_steps: int32 [N + 1]: response n owns steps response_steps[n] up to response_steps[n + 1], at least
            one; from 0 to S.
        bias: float32 [L], added to the dot products. None: nothing.
        head: "softmax" (L at least 2): a step's score is the probability of row 0, the positive label, among the L
            rows. "sigmoid" (L of 1): the sigmoid of row 0.
        reduction: "min", "mean", "product" or "last".
        backend: "auto", "triton", "cpu" or "reference".
        checked: the caller answers for the values of `step_positions` and `response_steps` (`check_indices` looks at
            them on the host, before they are sent); shapes, dtypes and devices are looked at anyway.
        deferred: an unfit score is no error yet, it is NaN or infinite, for `refuse_unfit`; what its response is
            reduced to means nothing. With `checked` nothing is copied to the host, so that a CUDA graph can hold the
            call (one before it, outside the graph, compiles).

    Returns:
        Scores, reduced and weakest, accumulated in float32.

    Raises:
        ValueError: a shape, dtype, device, option or index is wrong, before any work; or a step's logit is NaN or
            infinite, which names the response and the step.
    """
    _check_options(label_rows, head, reduction)
    _check_tensors(hidden, label_rows, bias, step_positions, response_steps)
    if not checked:
        check_indices(step_positions, response_steps, tokens=len(hidden))
    chosen = resolve(backend, hidden.device, AVAILABLE)
    tensors = (hidden, label_rows, bias, step_positions, response_steps)
    if chosen == "reference":
        return StepRewards(*reference.step_rewards(*tensors, head=head, reduction=reduction, deferred=deferred))
    found = (_cpu if chosen == "cpu" else _triton)(*tensors, head, reduction)
    if not deferred:
        refuse_unfit(found.scores, response_steps)
    return found


def check_indices(step_positions: Tensor, response_steps: Tensor, *, tokens: int) -> None:
    """Raise ValueError, naming the first index that is wrong, unless both are as `step_rewards` wants them.

    step_positions, response_steps: as there, on any device; from a GPU they are copied. tokens: rows of `hidden`.
    """
    positions, bounds = step_positions.cpu().numpy(), response_steps.cpu().numpy()
    outside = (positions < 0) | (positions >= tokens)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"step_rewards: step_positions[{at}] = {positions[at]}; allowed: 0 to {tokens - 1}")
    if bounds[0] != 0:
        raise ValueError(f"step_rewards: response_steps[0] = {bounds[0]}; allowed: 0")
    descends = bounds[1:] < bounds[:-1]
    if descends.any():
        at = int(descends.argmax()) + 1
        raise ValueError(f"step_rewards: response_steps[{at}] = {bounds[at]} is below {bounds[at - 1]}, the one before")
    empty = bounds[1:] == bounds[:-1]
    if empty.any():
        at = int(empty.argmax())
        raise ValueError(
            f"step_rewards: response {at} has no step (response_steps[{at}], [{at + 1}] = {bounds[at]}, {bounds[at]}); "
            "allowed: one or more"
        )
    if bounds[-1] != len(positions):
        raise ValueError(
            f"step_rewards: response_steps[{len(bounds) - 1}] = {bounds[-1]}; "
            f"allowed: {len(positions)}, the length of step_positions"
        )


def refuse_unfit(scores: Tensor, response_steps: Tensor) -> None:
    """Raise what `step_rewards` deferred: ValueError where a score is NaN or infinite, naming response and step.

    scores: float32 [S]. response_steps: as there, on the device of `scores`.
    """
    fit = scores.isfinite()
    if bool(fit.all()):
        return
    at = int((~fit).int().argmax())
    response = int(torch.searchsorted(response_steps, at, right=True)) - 1
    what = "NaN" if bool(scores[at].isnan()) else "infinite"
    raise ValueError(reference.unfit_score(response, at - int(response_steps[response]), what))


def _check_options(label_rows: Tensor, head: str, reduction: str) -> None:
    if head not in HEADS:
        raise ValueError(f"step_rewards: head={head!r}; allowed: {', '.join(HEADS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"step_rewards: reduction={reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if label_rows.dim() == 2 and (len(label_rows) != 1 if head == "sigmoid" else len(label_rows) < 2):
        allowed = "one row" if head == "sigmoid" else "two rows or more"
        raise ValueError(f"step_rewards: label_rows has {len(label_rows)} rows; allowed with head={head!r}: {allowed}")


def _check_tensors(
    hidden: Tensor, label_rows: Tensor, bias: Tensor | None, step_positions: Tensor, response_steps: Tensor
) -> None:
    if hidden.dtype not in DTYPES:
        raise ValueError(f"step_rewards: hidden is {hidden.dtype}; allowed: float32, bfloat16, float16")
    _check_layout("hidden", hidden, "[T, D] with D at least 1", hidden.dim() == 2 and hidden.shape[1] > 0)
    dim = hidden.shape[1]
    _check_dtype("label_rows", label_rows, (torch.float32, hidden.dtype))
    _check_layout("label_rows", label_rows, f"[L, {dim}]", label_rows.dim() == 2 and label_rows.shape[1] == dim)
    others = [("label_rows", label_rows), ("step_positions", step_positions), ("response_steps", response_steps)]
    if bias is not None:
        labels = label_rows.shape[0]
        _check_dtype("bias", bias, (torch.float32,))
        _check_layout("bias", bias, f"[{labels}]", bias.shape == (labels,))
        others.append(("bias", bias))
    _check_dtype("step_positions", step_positions, (torch.int32,))
    _check_layout("step_positions", step_positions, "[S]", step_positions.dim() == 1)
    _check_dtype("response_steps", response_steps, (torch.int32,))
    _check_layout("response_steps", response_steps, "[N + 1]", response_steps.dim() == 1 and len(response_steps) > 0)
    for name, tensor in others:
        if tensor.device != hidden.device:
            raise ValueError(f"step_rewards: {name} is on {tensor.device}; allowed: {hidden.device}, as hidden")


def _check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in allowed))
        raise ValueError(f"step_rewards: {name} is {tensor.dtype}; allowed: {names}")


def _check_layout(name: str, tensor: Tensor, shape: str, has_shape: bool) -> None:
    if not has_shape or not tensor.is_contiguous():
        raise ValueError(
            f"step_rewards: {name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}; "
            f"allowed: a contiguous {shape}"
        )


def _cpu(
    hidden: Tensor,
    label_rows: Tensor,
    bias: Tensor | None,
    step_positions: Tensor,
    response_steps: Tensor,
    head: str,
    reduction: str,
    isa: str = "",
) -> StepRewards:
    found = _empty(step_positions, response_steps)
    if len(step_positions):
        extension().step_rewards(
            hidden.data_ptr(), label_rows.data_ptr(), 0 if bias is None else bias.data_ptr(),
            DTYPES[hidden.dtype], DTYPES[label_rows.dtype], hidden.shape[1], label_rows.shape[0],
            step_positions.data_ptr(), response_steps.data_ptr(), len(response_steps) - 1, head, reduction,
            found.scores.data_ptr(), found.reduced.data_ptr(), found.weakest.data_ptr(), isa,
        )  # fmt: skip
    return found


def _triton(
    hidden: Tensor,
    label_rows: Tensor,
    bias: Tensor | None,
    step_positions: Tensor,
    response_steps: Tensor,
    head: str,
    reduction: str,
) -> StepRewards:
    from mstar_kernels import step_rewards_triton  # here, since Triton is not installed on every platform

    found = _empty(step_positions, response_steps)
    if len(step_positions):
        step_rewards_triton.launch(
            hidden, label_rows, bias, step_positions, response_steps, head, reduction,
            found.scores, found.reduced, found.weakest,
        )  # fmt: skip
    return found


def _empty(step_positions: Tensor, response_steps: Tensor) -> StepRewards:
    responses, device = len(response_steps) - 1, step_positions.device
    return StepRewards(
        scores=torch.empty(len(step_positions), dtype=torch.float32, device=device),
        reduced=torch.empty(responses, dtype=torch.float32, device=device),
        weakest=torch.empty(responses, dtype=torch.int32, device=device),
    )
