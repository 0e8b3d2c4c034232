"""Attention of packed rows: each example among itself, without a mask of the row's length squared.

On CUDA in half precision it is torch's variable-length flash attention; elsewhere sdpa, an example at a time. Models
that run flash or flex attention keep transformers' own way. The step is bound into what a layer's checkpoint computes
again: by then the forward is over, and autograd's threads see no context variable of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PretrainedConfig, PreTrainedModel

from mstar_engine.models.attention import (
    LayerCall,
    attention_step,
    causal_tail,
    hooked,
    language_configs,
    masked_attention,
    plain_attention,
)
from mstar_engine.models.compatibility import refuse_unsupported

REPLACED = ("sdpa", "eager")
"""The attention implementations of transformers that know packed rows by a mask alone."""
VARLEN_HEAD_SIZE = 256
"""The largest head size of the flash kernel; a multiple of 8."""
FLASH_CAPABILITY = (8, 0)
# torch 2.11 takes fewer key heads without being told; later versions want to be.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


class PackedAttention:
    """Causal attention of one row of examples of `lengths` tokens, each among itself, within the layer's window.

    `used` says how the last layer was computed: "varlen_attn" or "sdpa by example".
    """

    needs_mask = False

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.used: str | None = None
        self._bounds: Tensor | None = None

    def attend(self, call: LayerCall) -> Tensor:
        """[1, H, length, D] queries in, [1, length, H, D] out.

        ValueError when the model attends over other positions than were packed.
        """
        rows, _, length, _ = call.query.shape
        if rows != 1 or length != sum(self.lengths):
            raise ValueError(f"it attends over {rows} rows of {length} positions, not one of {sum(self.lengths)}")
        if takes_varlen(call):
            self.used = "varlen_attn"
            return self._varlen(call)
        self.used = "sdpa by example"
        parts = (tensor.split(self.lengths, dim=2) for tensor in (call.query, call.key, call.value))
        return torch.cat([_one_example(call, *part) for part in zip(*parts, strict=True)], dim=1)

    def _varlen(self, call: LayerCall) -> Tensor:
        if self._bounds is None:
            ends = [0, *accumulate(self.lengths)]
            self._bounds = torch.tensor(ends, dtype=torch.int32, device=call.query.device)
        longest = max(self.lengths)
        left = -1 if call.sliding_window is None else call.sliding_window - 1
        output = varlen_attn(
            *(tensor[0].transpose(0, 1) for tensor in (call.query, call.key, call.value)),
            self._bounds,
            self._bounds,
            longest,
            longest,
            scale=call.scale,
            window_size=(left, 0),
            **GROUPED,
        )
        return output[None]


def takes_varlen(call: LayerCall) -> bool:
    """Whether torch's variable-length flash attention can compute a layer."""
    return call.softcap is None and flash_takes(call.query, call.key, call.value)


def flash_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's variable-length flash attention can compute tensors of this type, head size and device."""
    size = query.shape[3]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and size == value.shape[3]
        and size <= VARLEN_HEAD_SIZE
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def _one_example(call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One example's attention, [1, length, H, D]."""
    length = query.shape[2]
    window = call.sliding_window if call.sliding_window is not None and call.sliding_window < length else None
    if call.softcap is not None:
        mask = None if window is None else causal_tail(length, length, window, query.device)
        return plain_attention(query, key, value, mask, call.scale, call.softcap)
    if window is not None:
        mask = causal_tail(length, length, window, query.device)
        return masked_attention(query, key, value, mask, call.scale).transpose(1, 2)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # the kernel for float32 wants as many key heads as query heads
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        grouped = False
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=call.scale, enable_gqa=grouped)
    return output.transpose(1, 2)


@contextmanager
def packed_attention(model: PreTrainedModel, lengths: Sequence[int] | None) -> Iterator[PackedAttention | None]:
    """Run the enclosed forward of one row of examples of `lengths` tokens, and what its backward computes again, with
    `PackedAttention`; yields it. None, and nothing changes: for rows that are not packed (`lengths` None), and where
    the model keeps transformers' own way.
    """
    configs = [] if lengths is None else language_configs(model)
    if lengths is None or not _replaced(model, configs):
        yield None
        return
    step = PackedAttention(lengths)
    with hooked(configs), attention_step(step), _bound_to_checkpoints(model, configs, step):
        yield step


def _replaced(model: PreTrainedModel, configs: Sequence[PretrainedConfig]) -> bool:
    """Whether the hook can stand for the model's attention: of masks it knows a causal one and a window.

    The same in training and out of it: what is proven of a model in evaluation must be what it is trained with.
    """
    if any(config._attn_implementation not in REPLACED for config in configs):
        return False
    if any(getattr(config, "attention_dropout", 0.0) for config in configs):
        return False
    try:
        refuse_unsupported(model.config)
    except ValueError:
        return False
    return True


@contextmanager
def _bound_to_checkpoints(
    model: nn.Module, configs: Sequence[PretrainedConfig], step: PackedAttention
) -> Iterator[None]:
    """Have every layer that keeps no activations compute them again under `step`, whenever and wherever that is."""

    def bound(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            return checkpoint(partial(_under, step, configs, function), *arguments, **options)

        return run

    with ExitStack() as restored:
        for module in model.modules():
            checkpoint = vars(module).get("_gradient_checkpointing_func")
            if checkpoint is not None:
                module._gradient_checkpointing_func = bound(checkpoint)
                restored.callback(setattr, module, "_gradient_checkpointing_func", checkpoint)
        yield


def _under(
    step: PackedAttention,
    configs: Sequence[PretrainedConfig],
    function: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> Any:
    with hooked(configs), attention_step(step):
        return function(*arguments, **options)
