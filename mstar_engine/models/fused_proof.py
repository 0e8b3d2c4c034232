"""Proofs that a kernel computes what a family's own code computes, on made-up inputs and weights.

The code runs on a twin of the module: a shallow copy with weights of ours, so neither the model's parameters nor its
hooks take part. It runs in float64, and beside the kernel in the model's type and in float32, which shows what the
rounding of a shorter type would hide. The kernel passes if its error is at most twice that of the code, and a rounding
or two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mstar_engine.models.compatibility import KVShape
from mstar_kernels.rms_norm import DTYPES, rms_norm
from mstar_kernels.rotary import rotary
from mstar_kernels.silu_mul import silu_mul

MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
NORM_FORMS = ((0.0, False), (0.0, True), (1.0, True), (1.0, False))
"""Offset of the weight, and whether it multiplies before the cast: Llama, those that cast last, Gemma."""
FLOOR = 2
"""Units of the type's relative precision that are never an error."""
COARSEST = 8
"""Units that the family's own code may err: beyond them, agreement with it would say little."""


class Refused(Exception):
    """Why an operation stays the family's own."""


@torch.no_grad()
def prove_norm(module: nn.Module, backend: str) -> dict[str, Any]:
    """The arguments with which `rms_norm` computes what the module does: eps, offset, weight_in_float32.

    Raises Refused.
    """
    weight, eps = module._parameters.get("weight"), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "forward" in module.__dict__:
        raise Refused("another has replaced its forward")
    if list(module._parameters) != ["weight"] or module._buffers or module._modules or type(weight) is not nn.Parameter:
        raise Refused("it has more than a weight, or another kind of weight")
    if weight.dim() != 1 or weight.dtype not in DTYPES or not weight.is_contiguous() or not isinstance(eps, float):
        raise Refused("its weight or eps is not of the usual form")
    generator = torch.Generator().manual_seed(0)
    # Rows as small as eps shows, and of zeros.
    scales = torch.tensor([0.0, eps**0.5, 0.1, 1.0, 40.0])[:, None, None]
    rows = torch.randn(5, 1, len(weight), generator=generator) * scales
    factor = torch.rand(len(weight), generator=generator) * 1.5 + 0.25
    forms = [{"eps": eps, "offset": offset, "weight_in_float32": wide} for offset, wide in NORM_FORMS]
    form: dict[str, Any] | None = None

    def own(x: Tensor, made_up: Tensor, of: torch.dtype) -> Tensor:
        twin = _twin(module, parameters={"weight": nn.Parameter(made_up.to(of), requires_grad=False)})
        return type(module).forward(twin, x.to(of))

    for dtype in dict.fromkeys((weight.dtype, torch.float32)):
        x, made_up = rows.to(weight.device, dtype), factor.to(weight.device, dtype)
        theirs, truth = _run(own, x, made_up, dtype), _run(own, x, made_up, torch.float64)
        _refuse_shape(theirs, x)
        if form is None:  # float32 would not tell which of them rounds alike
            distances = [
                float((rms_norm(x, made_up, **one, backend="reference").double() - theirs.double()).abs().sum())
                for one in forms
            ]
            form = forms[distances.index(min(distances))]
        _refuse_other("RMS normalisation", rms_norm(x, made_up, **form, backend=backend), theirs, truth)
    return form


@torch.no_grad()
def prove_mlp(module: nn.Module, dtype: torch.dtype, device: torch.device, backend: str) -> bool:
    """That the module computes down_proj(silu(gate_proj(x)) * up_proj(x)), of x in `dtype`. Raises Refused."""
    if "forward" in module.__dict__:
        raise Refused("another has replaced its forward")
    if module._modules.keys() != MLP_PARTS or module._parameters or module._buffers:
        raise Refused("it has other parts than gate_proj, up_proj, down_proj and act_fn")
    if dtype not in DTYPES or any(True for _ in module.act_fn.parameters()):
        raise Refused(f"its type is {dtype}, or its activation has parameters")
    generator = torch.Generator().manual_seed(0)
    # Rows large enough that a limit on the activations would show.
    rows = torch.randn(4, 1, 64, generator=generator) * torch.tensor([0.1, 1.0, 5.0, 40.0])[:, None, None]
    factors = {name: torch.rand(64, generator=generator) + 0.5 for name in ("gate_proj", "up_proj", "down_proj")}

    def parts(of: torch.dtype) -> dict[str, nn.Module]:
        made_up: dict[str, nn.Module] = {"act_fn": _Bare(module.act_fn)}
        return made_up | {name: _Scaled(factor.to(device, dtype).to(of)) for name, factor in factors.items()}

    def own(x: Tensor, of: torch.dtype) -> Tensor:
        return type(module).forward(_twin(module, modules=parts(of)), x.to(of))

    for used in dict.fromkeys((dtype, torch.float32)):
        x, stand_ins = rows.to(device, used), parts(used)
        theirs, truth = _run(own, x, used), _run(own, x, torch.float64)
        ours = stand_ins["down_proj"](silu_mul(stand_ins["gate_proj"](x), stand_ins["up_proj"](x), backend=backend))
        _refuse_other("silu(gate) * up", ours, theirs, truth)
    return True


@torch.no_grad()
def prove_rotary(function: Callable[..., Any], shape: KVShape, backend: str) -> bool:
    """That function(q, k, cos, sin) rotates halves as `rotary` does, in the type of `shape`. Raises Refused."""
    if shape.dtype not in DTYPES:
        raise Refused(f"its type is {shape.dtype}")
    generator = torch.Generator().manual_seed(0)
    batch, length, dim = 3, 2, shape.head_dim - shape.head_dim % 2
    sizes = (batch, 2 * shape.kv_heads, length, dim), (batch, shape.kv_heads, length, dim)
    # All elements of cos and sin differ, so a form that pairs others, or reads only some, shows.
    inputs = [torch.randn(size, generator=generator) for size in (*sizes, *[(batch, length, dim)] * 2)]
    for dtype in dict.fromkeys((shape.dtype, torch.float32)):
        given = [x.to(shape.device, dtype) for x in inputs]
        theirs, truth = _run(function, *given), _run(function, *(x.double() for x in given))
        for pair in (theirs, truth):
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise Refused("it returns something else than queries and keys")
        for parts in zip(rotary(*given, backend=backend), theirs, truth):
            _refuse_other("the rotation of halves", *parts)
    return True


class _Scaled(nn.Module):
    """Stands for a projection: elementwise, so that nothing but the code in question rounds differently."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Bare(nn.Module):
    """A module without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.run = type(module).forward.__get__(module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _twin(
    module: nn.Module,
    parameters: dict[str, nn.Parameter] | None = None,
    modules: dict[str, nn.Module] | None = None,
) -> nn.Module:
    """A copy that shares everything with the module but these."""
    twin = copy.copy(module)
    if parameters is not None:
        twin.__dict__["_parameters"] = dict(parameters)
    if modules is not None:
        twin.__dict__["_modules"] = dict(modules)
    return twin


def _run(own: Callable[..., Any], *args: Any) -> Any:
    try:
        return own(*args)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise Refused(f"it does not run by itself: {type(error).__name__}: {first_line}") from error


def _refuse_other(what: str, ours: Tensor, theirs: Any, truth: Any) -> None:
    """Raise Refused unless `ours` errs at most twice as `theirs`, relative to the largest element of a row of `truth`.

    All three [..., D]; `truth` of the same code in float64.
    """
    _refuse_shape(theirs, ours)
    truth = truth.double()
    size = truth.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.finfo(ours.dtype).eps
    error, own_error = (float(((x.double() - truth).abs() / size).max()) / unit for x in (ours, theirs))
    if not own_error <= COARSEST:
        raise Refused(f"it errs {own_error:.3g} units of precision against itself in float64; allowed: {COARSEST}")
    if not error <= 2 * own_error + FLOOR:
        raise Refused(f"{what} is {error:.3g} units of precision from it; allowed: {2 * own_error + FLOOR:.3g}")


def _refuse_shape(theirs: Any, like: Tensor) -> None:
    if not isinstance(theirs, Tensor) or theirs.shape != like.shape or theirs.dtype != like.dtype:
        raise Refused("its output is not of the type and shape of the kernel's")
