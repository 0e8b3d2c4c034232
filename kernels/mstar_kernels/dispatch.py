"""Which form of an op runs: C++ on the CPU, Triton on CUDA, or the plain PyTorch reference.

The invariant: "auto" may fall back, an explicit request is met or refused, never silently replaced.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from functools import cache
from types import ModuleType

import torch

BACKENDS = ("auto", "triton", "cpu", "reference")


@cache
def extension() -> ModuleType | None:
    """The C++ extension `mstar_kernels._C`, or None where it has not been built."""
    try:
        from mstar_kernels import _C
    except ImportError:
        return None
    return _C


def resolve(backend: str, device: torch.device | str, available: Collection[str]) -> str:
    """The backend that runs an op on tensors of `device`.

    `available` names the forms the op has: a subset of "triton", "cpu", "reference". "auto" takes Triton on CUDA and
    C++ on the CPU where the op has that form and it can run, else the reference. Triton runs on CPU tensors only under
    its interpreter (TRITON_INTERPRET=1, set before Triton is imported).

    Raises ValueError for an unknown backend, or for an explicit one that the op lacks or that cannot run on `device`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; allowed: {', '.join(BACKENDS)}")
    device_type = torch.device(device).type
    if backend == "auto":
        wanted = {"cuda": "triton", "cpu": "cpu"}.get(device_type, "reference")
        return wanted if _refusal(wanted, device_type, available) is None else "reference"
    refusal = _refusal(backend, device_type, available)
    if refusal is not None:
        raise ValueError(f"backend={backend!r}: {refusal}")
    return backend


def _refusal(backend: str, device_type: str, available: Collection[str]) -> str | None:
    if backend not in available:
        return f"this op has no such form; allowed: auto, {', '.join(sorted(available))}"
    if backend == "cpu" and device_type != "cpu":
        return f"the tensors are on {device_type}; allowed: cpu"
    if backend == "cpu" and extension() is None:
        return "the C++ extension mstar_kernels._C is not built; install the package with a C++20 compiler present"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; allowed: cpu, reference"
    if backend == "triton" and device_type != "cuda" and not _interpreter_is_on():
        return f"the tensors are on {device_type}; allowed: cuda (or TRITON_INTERPRET=1, set before Triton is imported)"
    return None


def _interpreter_is_on() -> bool:
    """Triton reads TRITON_INTERPRET as it decorates a function, its own library's included; later it has no effect."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    import triton

    return not isinstance(triton.language.sum, triton.JITFunction)
