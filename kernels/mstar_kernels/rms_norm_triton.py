"""The Triton form of `rms_norm`: a program holds a row in registers, or several short ones, and reads it once.

The floor is a launch: 128 rows of 3,584 in bfloat16 are 0.9 MB read and 0.9 MB written, 0.4 us at 4.3 TB/s. So rows are
spread over as many programs as there are. A row of more than WHOLE elements is read twice, the second time from L2.

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernel runs on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Elements of a program whose rows are short: as many rows as fit."""
WHOLE = 8192
"""The longest row that is held in registers: 32 elements a thread."""


@triton.jit
def weighted(x, scale, weight, dtype: tl.constexpr, OFFSET: tl.constexpr, WEIGHT_IN_FLOAT32: tl.constexpr):
    """A tile of rows times their scales and the weight, rounded where the op says; float32."""
    normed = x * scale[:, None]
    factor = weight.to(tl.float32) + OFFSET
    if not WEIGHT_IN_FLOAT32:
        normed = normed.to(dtype).to(tl.float32)
        factor = factor.to(dtype).to(tl.float32)
    return normed * factor[None, :]


@triton.jit(do_not_specialize=("rows",))
def rms_norm_kernel(
    x,
    weight,
    out,
    rows,
    stride,
    eps,
    DIM: tl.constexpr,
    OFFSET: tl.constexpr,
    WEIGHT_IN_FLOAT32: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Normalises ROWS rows of DIM elements, `stride` apart; those of `out` lie side by side."""
    dtype: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    is_row = (row < rows)[:, None]
    x_at = x + (row.to(tl.int64) * stride)[:, None]
    out_at = out + (row.to(tl.int64) * DIM)[:, None]
    if IS_WHOLE:
        is_element = d < DIM
        values = tl.load(x_at + d[None, :], mask=is_row & is_element[None, :], other=0).to(tl.float32)
        factor = tl.load(weight + d, mask=is_element, other=0)
        scale = tl.rsqrt(tl.sum(values * values, 1) / DIM + eps)
        values = weighted(values, scale, factor, dtype, OFFSET, WEIGHT_IN_FLOAT32)
        tl.store(out_at + d[None, :], values.to(dtype), mask=is_row & is_element[None, :])
    else:
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in range(0, DIM, WIDTH):
            is_element = is_row & (first + d < DIM)[None, :]
            values = tl.load(x_at + (first + d)[None, :], mask=is_element, other=0).to(tl.float32)
            total += values * values
        scale = tl.rsqrt(tl.sum(total, 1) / DIM + eps)
        for first in range(0, DIM, WIDTH):
            is_element = is_row & (first + d < DIM)[None, :]
            values = tl.load(x_at + (first + d)[None, :], mask=is_element, other=0).to(tl.float32)
            factor = tl.load(weight + first + d, mask=first + d < DIM, other=0)
            values = weighted(values, scale, factor, dtype, OFFSET, WEIGHT_IN_FLOAT32)
            tl.store(out_at + (first + d)[None, :], values.to(dtype), mask=is_element)


def tile_of(dim: int) -> dict[str, int | bool]:
    """Sizes of a program's tile, and its warps: 4 to 16 elements a thread, 32 of the longest rows."""
    width = min(triton.next_power_of_2(dim), WHOLE)
    rows = max(1, min(TILE // width, 32))
    warps = max(1, min(8, rows * width // 256))
    return {"ROWS": rows, "WIDTH": width, "IS_WHOLE": dim <= WHOLE, "num_warps": warps}


def launch(x: Tensor, weight: Tensor, eps: float, offset: float, weight_in_float32: bool, out: Tensor) -> None:
    """Fill out [..., D], contiguous, of at least one element. Unchecked; the arguments are those of the op."""
    dim = x.shape[-1]
    flat = x.reshape(-1, dim)  # a copy only where rows are not evenly spaced
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    tile = tile_of(dim)
    with torch.cuda.device_of(x):
        rms_norm_kernel[(triton.cdiv(len(flat), tile["ROWS"]),)](
            flat, weight, out, len(flat), flat.stride(0), eps,
            DIM=dim, OFFSET=offset, WEIGHT_IN_FLOAT32=weight_in_float32, **tile,
        )  # fmt: skip
