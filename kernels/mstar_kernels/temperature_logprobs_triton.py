"""The Triton form of `temperature_logprobs`: sums of a chunk for all temperatures, then a row's log-probabilities.

A program holds a chunk of a row in registers while it goes through the temperatures, so the logits are read once. An
exponential an element and temperature is the bound: 256 x 151,936 with 14 temperatures are 545 million, 147 us on 132
SMs that compute 16 a clock at 1.755 GHz; the read is 18 us at 4.3 TB/s and hides behind them.

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernels run on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mstar_kernels.sampling_terms_triton import LOWEST, holds_banned, is_banned, scale_of

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
CHUNK = 4096
"""Ids of a program: 16 logits a thread, in registers."""
BANNED_AT_ONCE = 512
RUNTIME = ("chunks", "banned", "degrees", "stride")
ROW_POINTERS = ("tokens", "logit_rows", "temperatures", "banned_ids")
"""Arguments whose values and alignment make no other kernels."""


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def sums_kernel(
    logits,
    logit_rows,
    temperatures,
    banned_ids,
    sums,
    vocabulary,
    chunks,
    banned,
    degrees,
    stride,
    CHUNK: tl.constexpr,
    BANNED: tl.constexpr,
):
    """Of a chunk the largest logit, then sums of e^((x - largest) / t) for each t: sums [R, 1 + degrees, chunks]."""
    row, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    begin = chunk * CHUNK
    ids = begin + tl.arange(0, CHUNK)
    x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
    x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
    if holds_banned(banned_ids, banned, begin, begin + CHUNK, BANNED) > 0:
        x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
    top = tl.maximum(tl.max(x, 0), LOWEST)
    d = x - top  # NaN where the chunk holds NaN or +inf
    out = sums + row.to(tl.int64) * (1 + degrees) * chunks + chunk
    tl.store(out, top)
    for degree in range(0, degrees):
        lift, factor = scale_of(tl.load(temperatures + row * stride + degree))
        out += chunks
        tl.store(out, tl.sum(tl.exp2(d * lift * factor), 0))


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def logprobs_kernel(
    logits,
    tokens,
    logit_rows,
    temperatures,
    banned_ids,
    sums,
    logprobs,
    vocabulary,
    chunks,
    banned,
    degrees,
    stride,
    CHUNKS: tl.constexpr,
    DEGREES: tl.constexpr,
):
    """Log-probabilities [R, degrees] of row program_id(0), as `launch` says of unfit rows."""
    row = tl.program_id(0)
    chunk, degree = tl.arange(0, CHUNKS), tl.arange(0, DEGREES)
    found = sums + row.to(tl.int64) * (1 + degrees) * chunks
    tops = tl.load(found + chunk, mask=chunk < chunks, other=LOWEST)
    is_sum = (chunk < chunks)[:, None] & (degree < degrees)[None, :]
    of_chunks = tl.load(found + (1 + degree)[None, :] * chunks + chunk[:, None], mask=is_sum, other=0)
    t = tl.load(temperatures + row * stride + degree, mask=degree < degrees, other=1)
    lift, factor = scale_of(t)
    top = tl.max(tops, 0)
    shift = tl.maximum(tops - top, LOWEST)[:, None] * lift[None, :] * factor[None, :]
    total = tl.sum((of_chunks * tl.exp2(shift)).to(tl.float64), 0)

    token = tl.load(tokens + row)
    x = tl.load(logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary + token).to(tl.float32)
    is_out = tl.max(is_banned(token + tl.zeros([1], tl.int32), banned_ids, banned).to(tl.int32), 0) > 0
    x = tl.where(is_out, float("-inf"), x)
    # Rounding may leave a certain token a hair above probability one.
    value = tl.minimum((x.to(tl.float64) - top.to(tl.float64)) / t.to(tl.float64) - tl.log(total), 0.0)
    value = tl.where(total == 0, float("inf"), tl.where(total != total, float("nan"), value))
    tl.store(logprobs + row * degrees + degree, value.to(tl.float32), mask=degree < degrees)


def launch(
    logits: Tensor, tokens: Tensor, logit_rows: Tensor, temperatures: Tensor, banned_ids: Tensor, logprobs: Tensor
) -> None:
    """Fill logprobs [R, K] on the logits' device; R at least 1. Unchecked; the arguments are those of the op.

    A row that holds NaN or +inf is filled with NaN, one that has no finite logit with +inf.
    """
    rows, degrees = logprobs.shape
    vocabulary, banned = logits.shape[1], len(banned_ids)
    chunks = triton.cdiv(vocabulary, CHUNK)
    stride = degrees if len(temperatures) == rows else 0
    sums = torch.empty(rows, 1 + degrees, chunks, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        sums_kernel[(rows * chunks,)](
            logits, logit_rows, temperatures, banned_ids, sums, vocabulary, chunks, banned, degrees, stride,
            CHUNK=CHUNK, BANNED=BANNED_AT_ONCE, **OPTIONS,
        )  # fmt: skip
        logprobs_kernel[(rows,)](
            logits, tokens, logit_rows, temperatures, banned_ids, sums, logprobs,
            vocabulary, chunks, banned, degrees, stride,
            CHUNKS=triton.next_power_of_2(chunks), DEGREES=triton.next_power_of_2(degrees), **OPTIONS,
        )  # fmt: skip
