"""Liger-Kernel's fused linear cross-entropy, where it is installed and can do what is asked.

It takes over for rows of one weight. It cannot weight rows in one pass: the backward of its unreduced losses scales by
one number in 0.7, and computes the logits a second time in 0.8. Rows of several weights go to `linear_cross_entropy`.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

UseLiger = Literal["auto"] | bool
OLDEST = "0.7"


@cache
def _function() -> Any:
    """The autograd function; None when it is not installed or knows no float32 accumulation (before 0.7)."""
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as function
    except ImportError:
        return None
    return function if "accum_dtype" in inspect.signature(function.forward).parameters else None


def use_liger(asked: UseLiger, device: torch.device) -> bool:
    """Whether Liger serves tensors on `device`. ValueError where it was asked for and cannot."""
    if asked is False or (asked == "auto" and device.type != "cuda"):
        return False
    reason = None
    if device.type != "cuda":
        reason = f"its kernels need CUDA, and the policy is on {device.type}"
    elif _function() is None:
        reason = f"liger-kernel {OLDEST} or newer is not installed"
    if asked is True and reason is not None:
        raise ValueError(f"train.use_liger_kernel=true: {reason}; allowed: auto or false, which need neither")
    return reason is None


def liger_sum(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """The sum over rows of -log p(target), in nats; arguments as in `linear_cross_entropy`."""
    # By position, as autograd functions take them: no class weights, nothing ignored, no z-loss, no label smoothing.
    ignored, z_loss, smoothing = -100, 0.0, 0.0
    return _function().apply(
        hidden, weight, targets, bias, None, ignored, z_loss, smoothing, "sum", softcap, False, torch.float32
    )[0]
