"""The attention hook: runs a step of ours inside any Hugging Face model's own forward.

Registered with transformers' attention and mask interfaces and switched on for the language model only, while
`hooked` is active; a vision tower keeps its own attention. The step is carried in a context variable, not in keyword
arguments, because those leak into vision towers. With no step set, the hook is the model's usual attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "mstar"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One attention layer's call: what the model passed, after rotary embedding.

    `query` [batch, H, length, D], `key` and `value` [batch, Hkv, length, D]. `usual()` computes the attention of these
    tokens among themselves as the model would have done without the hook, [batch, length, H, D].
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    sliding_window: int | None
    softcap: float | None
    usual: Callable[[], torch.Tensor]


class AttentionStep(Protocol):
    """What a step does in place of the model's attention."""

    needs_mask: bool
    """Whether the model shall build its attention mask (a prefill); building one for a decode step is waste."""

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Returns the attention output, [batch, length, H, D]."""
        ...


_step: ContextVar[AttentionStep | None] = ContextVar("mstar_attention_step", default=None)
_usual_name: ContextVar[str] = ContextVar("mstar_usual_attention", default="sdpa")
_windows: ContextVar[set[int] | None] = ContextVar("mstar_mask_windows", default=None)


class UnsupportedAttention(ValueError):
    """What an attention layer asks for and no step can do."""


@contextmanager
def attention_step(step: AttentionStep) -> Iterator[None]:
    """Run the enclosed forward with `step` as the attention of the language model."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


@contextmanager
def mask_windows() -> Iterator[set[int]]:
    """The sliding windows of the masks that a model asks for within, whether or not they are built."""
    found: set[int] = set()
    token = _windows.set(found)
    try:
        yield found
    finally:
        _windows.reset(token)


@contextmanager
def hooked(configs: Sequence[PretrainedConfig]) -> Iterator[None]:
    """Switch the attention of a language model (its `language_configs`) to the hook, around a forward of ours.

    Not to be held across a yield: the model must be as before whenever the caller has control. A model that was loaded
    with eager attention is run with sdpa, the same up to rounding. May be entered again inside itself.
    """
    before = [config._attn_implementation for config in configs]
    usual = _usual_name.get() if before[0] == NAME else before[0]
    token = _usual_name.set(usual if usual in ALL_ATTENTION_FUNCTIONS else "sdpa")
    for config in configs:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before):
            config._attn_implementation_internal = name
        _usual_name.reset(token)


def language_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Every config object that the language model's modules read (some families hold copies), the main one first."""
    main = model.config.get_text_config(decoder=True)
    configs = [main]
    for module in model.modules():
        config = getattr(module, "config", None)
        if type(config) is type(main) and all(config is not known for known in configs):
            configs.append(config)
    return configs


@torch.compiler.disable  # it reads a context variable and calls kernels; a compiled decode step breaks here
def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every language-model attention layer."""

    def usual() -> torch.Tensor:
        if kwargs.get("softcap") is not None:
            return plain_attention(query, key, value, attention_mask, scale, float(kwargs["softcap"]))
        forward = ALL_ATTENTION_FUNCTIONS[_usual_name.get()]
        return forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)[0]

    step = _step.get()
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    if step is None:
        return usual(), None
    if kwargs.get("s_aux") is not None:
        raise UnsupportedAttention("its attention has sinks (a logit beside the keys')")
    window = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
    call = LayerCall(
        layer=int(module.layer_idx),
        query=query,
        key=key,
        value=value,
        scale=scale,
        sliding_window=int(window) if window else None,
        softcap=kwargs.get("softcap"),
        usual=usual,
    )
    return step.attend(call), None


def _mask(*args: object, **kwargs: object) -> torch.Tensor | None:
    step, windows = _step.get(), _windows.get()
    if windows is not None and kwargs.get("local_size"):
        windows.add(int(kwargs["local_size"]))
    if step is not None and not step.needs_mask:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[_usual_name.get()](*args, **kwargs)


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention written out, for what sdpa cannot do (soft cap). Boolean or additive `mask`, None is causal.

    Shapes as in `LayerCall`; returns [batch, length, H, D].
    """
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        length = query.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).contiguous()


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """sdpa under a boolean mask, key/value heads shared by groups of query heads. Returns [batch, H, length, D].

    CUDA's fused kernel for masks wants as many key heads as query heads; without, sdpa would write out all scores.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        grouped = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


def causal_tail(length: int, context: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Boolean mask [length, context] of the last `length` positions of a causal mask, within the window."""
    query = torch.arange(context - length, context, device=device)[:, None]
    key = torch.arange(context, device=device)[None, :]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
