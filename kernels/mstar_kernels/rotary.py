"""Rotary position embedding of queries and keys, in one launch for both.

Written out in PyTorch it is a slice, a negation, a concatenation, two products and a sum, for queries and for keys.
Legend: B batch, L length, H query heads, Hkv key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mstar_kernels import reference_layers
from mstar_kernels.dispatch import resolve

AVAILABLE = ("triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Rotate the two halves of each head: x * cos + (-x's second half, x's first half) * sin. Not differentiable.

    Both products are rounded to the type, then their sum, so the bits are those of Hugging Face's `rotate_half` form.

    Args:
        q: [B, H, L, D], float32, bfloat16 or float16, D even and at least 2; of any strides.
        k: [B, Hkv, L, D], of q's dtype and device; of any strides.
        cos, sin: [B, L, D], of q's dtype and device; of any strides.
        backend: "auto", "triton" or "reference".

    Returns:
        q and k rotated, of their shapes. Both lie as contiguous [B, L, H, D], seen transposed: what stores keys and
        attends to them a token at a time needs no copy.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    if q.dtype not in DTYPES:
        raise ValueError(f"rotary: q is {q.dtype}; allowed: float32, bfloat16, float16")
    if q.dim() != 4 or q.shape[3] == 0 or q.shape[3] % 2:
        raise ValueError(f"rotary: q has shape {tuple(q.shape)}; allowed: [B, H, L, D] with D even and at least 2")
    batch, _, length, dim = q.shape
    k_shape = k.shape[:1] + k.shape[2:]
    for name, tensor, allowed, has_shape in (
        ("k", k, f"[{batch}, Hkv, {length}, {dim}]", k.dim() == 4 and k_shape == (batch, length, dim)),
        ("cos", cos, f"[{batch}, {length}, {dim}]", cos.shape == (batch, length, dim)),
        ("sin", sin, f"[{batch}, {length}, {dim}]", sin.shape == (batch, length, dim)),
    ):  # fmt: skip
        if not has_shape:
            raise ValueError(f"rotary: {name} has shape {tuple(tensor.shape)}; allowed: {allowed}")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"rotary: {name} is {tensor.dtype} on {tensor.device}; allowed: {q.dtype} on {q.device}")
    chosen = resolve(backend, q.device, AVAILABLE)
    if chosen == "reference":
        return tuple(_by_token(x) for x in reference_layers.rotary(q, k, cos, sin))
    outs = [torch.empty(batch, length, x.shape[1], dim, dtype=x.dtype, device=x.device) for x in (q, k)]
    if outs[0].numel() + outs[1].numel():
        from mstar_kernels import rotary_triton  # here, since Triton is not installed on every platform

        rotary_triton.launch(q, k, cos, sin, *outs)
    return outs[0].transpose(1, 2), outs[1].transpose(1, 2)


def _by_token(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)
