"""The Triton form of `silu_mul`: 1,024 elements a program.

The floor is memory: 128 rows of 18,944 in bfloat16 are 9.7 MB read and 4.8 MB written, 3.4 us at 4.3 TB/s, less where
the products before it have left them in L2.

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernel runs on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4}
WIDTH = 1024


@triton.jit
def silu_mul_kernel(gate, up, out, count, WIDTH: tl.constexpr):
    """WIDTH elements a program, of `count`."""
    dtype: tl.constexpr = out.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    is_element = at < count
    x = tl.load(gate + at, mask=is_element, other=0).to(tl.float32)
    y = tl.load(up + at, mask=is_element, other=0).to(tl.float32)
    silu = (x / (1.0 + tl.exp(-x))).to(dtype).to(tl.float32)
    tl.store(out + at, (silu * y).to(dtype), mask=is_element)


def launch(gate: Tensor, up: Tensor, out: Tensor) -> None:
    """Fill `out`, of at least one element; all three contiguous. Unchecked."""
    with torch.cuda.device_of(gate):
        silu_mul_kernel[(triton.cdiv(out.numel(), WIDTH),)](gate, up, out, out.numel(), WIDTH=WIDTH, **OPTIONS)
