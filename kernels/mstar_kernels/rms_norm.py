"""Root mean square normalisation of rows in one pass: what a decoder layer does before attention and before its MLP.

Written out in PyTorch it is six or seven kernels, each of which a decode step waits for longer than it computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mstar_kernels import reference_layers
from mstar_kernels.dispatch import resolve

AVAILABLE = ("triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    weight_in_float32: bool = False,
    backend: str = "auto",
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (offset + weight), over the last axis. Not differentiable.

    Args:
        x: [..., D], D at least 1, float32, bfloat16 or float16; of any strides.
        weight: [D], contiguous, of x's dtype and device.
        eps: added to the mean square.
        offset: added to the weight: 1 in families whose weights are kept around 0 (Gemma).
        weight_in_float32: what is rounded to x's dtype. False: the normalised row, then its product with the weight,
            as in Llama. True: the product alone, as in Gemma. In float32 it makes no difference.
        backend: "auto", "triton" or "reference".

    Returns:
        [..., D], contiguous, of x's dtype; the mean is in float32. NaN and infinity propagate as in PyTorch.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    if x.dtype not in DTYPES:
        raise ValueError(f"rms_norm: x is {x.dtype}; allowed: float32, bfloat16, float16")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm: x has shape {tuple(x.shape)}; allowed: [..., D] with D at least 1")
    if weight.shape != x.shape[-1:] or not weight.is_contiguous():
        raise ValueError(
            f"rms_norm: weight has shape {tuple(weight.shape)}, strides {weight.stride()}; "
            f"allowed: a contiguous [{x.shape[-1]}]"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"rms_norm: weight is {weight.dtype} on {weight.device}; allowed: {x.dtype} on {x.device}")
    chosen = resolve(backend, x.device, AVAILABLE)
    if chosen == "reference":
        found = reference_layers.rms_norm(x, weight, eps, offset=offset, weight_in_float32=weight_in_float32)
        return found.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        from mstar_kernels import rms_norm_triton  # here, since Triton is not installed on every platform

        rms_norm_triton.launch(x, weight, eps, offset, weight_in_float32, out)
    return out
