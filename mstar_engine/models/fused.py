"""Fused kernels in place of a model's small operations, while a decode step runs: norms, rotary embedding, gated MLPs.

A decode step of few rows waits for the launches of these operations longer than they compute. Which of a family's
classes and functions can be replaced is never read off a name alone: each is run on made-up inputs beside the kernel,
and taken only if the kernel errs no more than it does, both measured against the family's own code in float64. The rest
stays as it is. Outside `active` the model is what it was, and inside it whatever the proof did not cover (a gradient,
another type or shape) goes to the family's code.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mstar_engine.models.compatibility import KVShape
from mstar_engine.models.fused_proof import MLP_PARTS, Refused, prove_mlp, prove_norm, prove_rotary
from mstar_kernels.dispatch import resolve
from mstar_kernels.rms_norm import AVAILABLE, DTYPES, rms_norm
from mstar_kernels.rotary import rotary
from mstar_kernels.silu_mul import silu_mul

ROTARY = "apply_rotary_pos_emb"
"""The function that transformers' attention classes call, looked up in the module that defines them."""
log = logging.getLogger(__name__)


class FusedLayers:
    """What of `model`'s language model runs fused inside `active`.

    `shape` is what `probe` found; `backend` "auto", "triton" or "reference" of the kernels.

    fused: names of classes and functions that are replaced.
    left: names of those that looked as if they could be, and why they are not.
    """

    def __init__(self, model: PreTrainedModel, shape: KVShape, *, backend: str = "auto") -> None:
        self.backend = backend
        self.shape = shape
        self.fused: list[str] = []
        self.left: dict[str, str] = {}
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._functions: list[tuple[dict[str, Any], Callable[..., Any], Callable[..., Any]]] = []
        self._proven: dict[object, Any] = {}
        for module in _language_model(model).modules():
            if _is_norm(module):
                self._take_norm(module)
            elif module._modules.keys() >= MLP_PARTS:
                self._take_mlp(module)
            self._take_rotary(module)
        for name in self.fused:
            log.debug("fused in decode steps: %s", name)
        for name, reason in self.left.items():
            log.debug("not fused in decode steps: %s: %s", name, reason)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the enclosed forwards fused. One thread at a time; not to be held across a yield to the caller."""
        taken: list[nn.Module] = []
        patched: list[tuple[dict[str, Any], Callable[..., Any]]] = []
        try:
            for module, forward in self._forwards:
                if "forward" not in module.__dict__:  # another's override stays
                    module.__dict__["forward"] = forward
                    taken.append(module)
            for scope, original, replacement in self._functions:
                if scope[ROTARY] is original:
                    scope[ROTARY] = replacement
                    patched.append((scope, original))
            yield
        finally:
            for module in taken:
                del module.__dict__["forward"]
            for scope, original in patched:
                scope[ROTARY] = original

    def _prove(self, kind: object, name: str, proof: Callable[[], Any]) -> Any:
        """What the proof of a kind found, at most one proof a kind; None where it is refused."""
        if kind not in self._proven:
            try:
                self._proven[kind] = proof()
                if name not in self.fused:
                    self.fused.append(name)
            except Refused as refused:
                self._proven[kind] = None
                self.left[name] = str(refused)
        return self._proven[kind]

    def _take_norm(self, module: nn.Module) -> None:
        weight = module._parameters.get("weight")
        size = tuple(weight.shape) if weight is not None else ()
        at = (size, weight.dtype, weight.device) if weight is not None else ()
        name = f"{type(module).__name__} {list(size)}"
        form = self._prove((_kind(module), at), name, lambda: prove_norm(module, self.backend))
        if form is None:
            return
        original = module.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or kwargs or x.dtype != module.weight.dtype or torch.is_grad_enabled():
                return original(x, *args, **kwargs)
            return rms_norm(x, module.weight, **form, backend=self.backend)

        self._forwards.append((module, forward))

    def _take_mlp(self, module: nn.Module) -> None:
        kind = (_kind(module), type(module.act_fn), repr(module.act_fn))
        name = type(module).__name__
        proof = self._prove(kind, name, lambda: prove_mlp(module, self.shape.dtype, self.shape.device, self.backend))
        if proof is None:
            return
        original = module.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            act = module.act_fn
            if args or kwargs or torch.is_grad_enabled() or act._forward_hooks or act._forward_pre_hooks:
                return original(x, *args, **kwargs)
            gate, up = module.gate_proj(x), module.up_proj(x)
            alike = gate.dtype == up.dtype and gate.shape == up.shape and gate.device == up.device
            if not alike or gate.dtype not in DTYPES:
                return module.down_proj(act(gate) * up)
            return module.down_proj(silu_mul(gate, up, backend=self.backend))

        self._forwards.append((module, forward))

    def _take_rotary(self, module: nn.Module) -> None:
        forward = inspect.unwrap(type(module).forward)
        code, scope = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
        if code is None or ROTARY not in code.co_names or ROTARY not in scope:
            return
        if any(scope is known for known, _, _ in self._functions):
            return
        original = scope[ROTARY]
        name = f"{scope.get('__name__', '?').rpartition('.')[2]}.{ROTARY}"
        if self._prove((ROTARY, id(scope)), name, lambda: prove_rotary(original, self.shape, self.backend)) is None:
            return

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if kwargs or torch.is_grad_enabled() or not _are_rotary(args):
                return original(*args, **kwargs)
            return rotary(*args, backend=self.backend)

        self._functions.append((scope, original, replacement))


def fuses(device: torch.device) -> bool:
    """Whether the kernels run on `device` as what they are: elsewhere they are the plain PyTorch reference."""
    return resolve("auto", device, AVAILABLE) == "triton"


def _language_model(model: nn.Module) -> nn.Module:
    """What a decode step runs, without the towers that see images; the whole model where it does not say."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def _is_norm(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("RMSNorm")
    return named or getattr(type(module), "kernel_layer_name", None) == "RMSNorm"


def _kind(module: nn.Module) -> tuple[object, ...]:
    """What a proof of one module says about others: the same class, and the same settings."""
    settings = []
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and name not in ("training", "layer_idx"):
            is_plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
            settings.append((name, repr(value) if is_plain else id(value)))
    return type(module), *settings


def _are_rotary(args: tuple[Any, ...]) -> bool:
    """Whether a call's arguments are what `rotary` takes."""
    if len(args) != 4 or not all(isinstance(x, Tensor) for x in args):
        return False
    q, k, cos, sin = args
    if q.dim() != 4 or k.dim() != 4 or any(x.dtype != q.dtype or x.device != q.device for x in args):
        return False
    batch, _, length, dim = q.shape
    shapes = cos.shape == sin.shape == (batch, length, dim) and (k.shape[0], *k.shape[2:]) == (batch, length, dim)
    return shapes and dim > 0 and dim % 2 == 0 and q.dtype in DTYPES
