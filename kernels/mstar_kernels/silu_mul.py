"""silu(gate) * up, the middle of a gated MLP, in one launch instead of two."""

from __future__ import annotations

import torch
from torch import Tensor

from mstar_kernels import reference_layers
from mstar_kernels.dispatch import resolve

AVAILABLE = ("triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def silu_mul(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """gate * sigmoid(gate), rounded to the type, times `up`. Not differentiable.

    Args:
        gate: of any shape and strides, float32, bfloat16 or float16.
        up: of gate's shape, dtype and device; of any strides.
        backend: "auto", "triton" or "reference".

    Returns:
        Of gate's shape and dtype, contiguous.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    if gate.dtype not in DTYPES:
        raise ValueError(f"silu_mul: gate is {gate.dtype}; allowed: float32, bfloat16, float16")
    if up.shape != gate.shape:
        raise ValueError(f"silu_mul: up has shape {tuple(up.shape)}; allowed: {tuple(gate.shape)}, as gate")
    if up.dtype != gate.dtype or up.device != gate.device:
        raise ValueError(f"silu_mul: up is {up.dtype} on {up.device}; allowed: {gate.dtype} on {gate.device}")
    gate, up = gate.contiguous(), up.contiguous()
    if resolve(backend, gate.device, AVAILABLE) == "reference":
        return reference_layers.silu_mul(gate, up)
    out = torch.empty_like(gate)
    if out.numel():
        from mstar_kernels import silu_mul_triton  # here, since Triton is not installed on every platform

        silu_mul_triton.launch(gate, up, out)
    return out
