"""The Triton form of `step_rewards`: one kernel for the scores of steps, one for what responses reduce them to.

The floor is one read of the scored rows, S * D elements: the label rows stay in the caches, and the second kernel reads
4 bytes a step. Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set
before Triton is imported, the same kernels run on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
ROWS = 8
"""Steps a program of the first kernel scores."""
RESPONSES, STEPS = 32, 32
"""Responses a program of the second kernel reduces, and how many of their steps at a time."""


def width_of(dim: int, dtype: torch.dtype) -> int:
    """Elements of D that a program takes at a time: at most 1,024 bytes of a row.

    So a tile is 8 KiB, two of which are on their way from memory while a third is multiplied. In bfloat16 a thread
    holds 64 sums in 160 registers, so three programs run on an SM of Hopper and 48 KiB are on their way to it.
    """
    return min(1024 // dtype.itemsize, max(32, triton.next_power_of_2(dim)))


@triton.jit
def scores_kernel(
    hidden,
    label_rows,
    bias,
    step_positions,
    scores,
    steps,
    dim,
    labels,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Scores of ROWS steps a program; NaN where a logit is NaN, else infinity where one is infinite.

    Label rows are taken two at a time, with a running softmax over the pairs; two label tokens are one pass.
    """
    step = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_step = step < steps
    row = hidden + tl.load(step_positions + step, mask=is_step, other=0).to(tl.int64) * dim

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    positive = tl.zeros([ROWS], tl.float32)  # the logit of label row 0
    is_nan = tl.zeros([ROWS], tl.int32)
    is_infinite = tl.zeros([ROWS], tl.int32)
    for label in range(0, labels, 2):
        beside = tl.minimum(1, labels - 1 - label)  # 0 where an odd row is left: it is multiplied twice, counted once
        sums = tl.zeros([ROWS, WIDTH], tl.float32)
        second_sums = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in tl.range(0, dim, WIDTH, num_stages=3):  # rows are copied two tiles ahead
            d = first + tl.arange(0, WIDTH)
            is_element = d < dim
            x = tl.load(row[:, None] + d[None, :], mask=is_step[:, None] & is_element[None, :], other=0).to(tl.float32)
            sums += x * tl.load(label_rows + d, mask=is_element, other=0).to(tl.float32)[None, :]
            if HEAD == "softmax":
                second = tl.load(label_rows + beside * dim + d, mask=is_element, other=0).to(tl.float32)
                second_sums += x * second[None, :]
        label_rows += 2 * dim

        logit = tl.sum(sums, 1)
        if bias is not None:
            logit += tl.load(bias + label)
        is_nan |= (logit != logit).to(tl.int32)
        is_infinite |= (tl.abs(logit) == float("inf")).to(tl.int32)
        positive = tl.where(label == 0, logit, positive)
        if HEAD == "softmax":
            logit_2 = tl.sum(second_sums, 1)
            if bias is not None:
                logit_2 += tl.load(bias + label + beside)
            is_nan |= (logit_2 != logit_2).to(tl.int32)
            is_infinite |= (tl.abs(logit_2) == float("inf")).to(tl.int32)
            logit_2 = tl.where(beside == 1, logit_2, float("-inf"))
            new_top = tl.maximum(top, tl.maximum(logit, logit_2))
            total = total * tl.exp(top - new_top) + tl.exp(logit - new_top) + tl.exp(logit_2 - new_top)
            top = new_top

    if HEAD == "softmax":
        score = tl.div_rn(tl.exp(positive - top), total)
    else:
        e = tl.exp(-tl.abs(positive))
        score = tl.div_rn(tl.where(positive >= 0, 1.0, e), 1.0 + e)
    score = tl.where(is_infinite != 0, float("inf"), score)
    score = tl.where(is_nan != 0, float("nan"), score)
    tl.store(scores + step, score, mask=is_step)


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def reduce_kernel(
    scores,
    response_steps,
    reduced,
    weakest,
    responses,
    REDUCTION: tl.constexpr,
    RESPONSES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Reduces RESPONSES responses a program, and finds the weakest step of each."""
    response = tl.program_id(0) * RESPONSES + tl.arange(0, RESPONSES)
    is_response = response < responses
    begin = tl.load(response_steps + response, mask=is_response, other=0)
    end = tl.load(response_steps + response + 1, mask=is_response, other=1)

    least = tl.full([RESPONSES], float("inf"), tl.float32)
    least_at = tl.zeros([RESPONSES], tl.int32)
    total = tl.full([RESPONSES], 1.0 if REDUCTION == "product" else 0.0, tl.float32)
    for first in range(0, tl.max(end - begin, 0), STEPS):
        step = begin[:, None] + first + tl.arange(0, STEPS)[None, :]
        is_own = is_response[:, None] & (step < end[:, None])
        x = tl.load(scores + step, mask=is_own, other=float("inf"))
        x_least, x_at = tl.min(x, 1, return_indices=True)  # the lowest index on a tie
        least_at = tl.where(x_least < least, first + x_at, least_at)
        least = tl.minimum(least, x_least)
        if REDUCTION == "mean":
            total += tl.sum(tl.where(is_own, x, 0.0), 1)
        elif REDUCTION == "product":
            total *= tl.reduce(tl.where(is_own, x, 1.0), 1, _multiply)

    if REDUCTION == "mean":
        total = tl.div_rn(total, (end - begin).to(tl.float32))
    elif REDUCTION == "last":
        total = tl.load(scores + end - 1, mask=is_response, other=0)
    elif REDUCTION == "min":
        total = least
    tl.store(reduced + response, total, mask=is_response)
    tl.store(weakest + response, least_at, mask=is_response)


def launch(
    hidden: Tensor,
    label_rows: Tensor,
    bias: Tensor | None,
    step_positions: Tensor,
    response_steps: Tensor,
    head: str,
    reduction: str,
    scores: Tensor,
    reduced: Tensor,
    weakest: Tensor,
) -> None:
    """Fill scores [S], reduced [N] and weakest [N] on hidden's device; S and N at least 1. Unchecked."""
    steps, responses, dim = len(step_positions), len(response_steps) - 1, hidden.shape[1]
    with torch.cuda.device_of(hidden):
        scores_kernel[(triton.cdiv(steps, ROWS),)](
            hidden, label_rows, bias, step_positions, scores, steps, dim, label_rows.shape[0],
            HEAD=head, ROWS=ROWS, WIDTH=width_of(dim, hidden.dtype), **OPTIONS,
        )  # fmt: skip
        reduce_kernel[(triton.cdiv(responses, RESPONSES),)](
            scores, response_steps, reduced, weakest, responses,
            REDUCTION=reduction, RESPONSES=RESPONSES, STEPS=STEPS, **OPTIONS,
        )  # fmt: skip
