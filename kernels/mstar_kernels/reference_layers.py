"""What lies between the matrix products of a decoder layer, in plain PyTorch: the specification of its fused kernels.

Each rounds where Hugging Face's code of that operation rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float, weight_in_float32: bool) -> Tensor:
    """See `mstar_kernels.rms_norm.rms_norm`. Computes in float32, and in float64 where `x` is float64."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(compute)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight_in_float32:
        return (normed * (offset + weight.to(compute))).to(x.dtype)
    return (weight if offset == 0 else weight + offset) * normed.to(x.dtype)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `mstar_kernels.rotary.rotary`."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `mstar_kernels.silu_mul.silu_mul`."""
    return torch.nn.functional.silu(gate) * up
