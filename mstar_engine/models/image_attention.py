"""Attention of vision towers that put images, or windows of them, behind one another in one sequence.

Without a flash attention transformers runs one sdpa call for each window: 64 a layer and image in Qwen2.5-VL, each
launched by the host. It hands the boundaries to any implementation that has "flash" in its name; ours gives them to
the variable-length kernel that torch brings along.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from mstar_engine.models.packed_attention import flash_takes

NAME = "mstar_flash_images"
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


def image_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs of vision towers in `model` whose attention layers are given boundaries (`cu_seqlens`), on a CUDA
    device and in half precision, as the kernel wants it. Empty where the tower already has a flash attention."""
    if model.device.type != "cuda" or model.dtype not in KERNEL_DTYPES:
        return []
    return boundary_configs(model)


def boundary_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """As `image_configs`, on any device and in any precision."""
    found: list[PretrainedConfig] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        if not isinstance(config, PretrainedConfig) or config._attn_implementation not in ("sdpa", "eager"):
            continue
        takes = "cu_seqlens" in inspect.signature(module.forward).parameters and hasattr(module, "is_causal")
        if takes and all(config is not known for known in found):
            found.append(config)
    return found


@contextmanager
def packed_images(configs: Sequence[PretrainedConfig]) -> Iterator[None]:
    """Within, the towers of these configs attend by boundaries; afterwards as before."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before):
            config._attn_implementation_internal = name


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    is_causal: bool = False,
    **_: object,
) -> tuple[Tensor, None]:
    """The function that transformers calls: q [1, H, tokens, D], k and v [1, Hkv, tokens, D]; [1, tokens, H, D]."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    if not flash_takes(query, key, value):
        parts = [
            F.scaled_dot_product_attention(
                *(tensor[:, :, begin:end] for tensor in (query, key, value)), scale=scaling, is_causal=is_causal
            )
            for begin, end in pairwise(cu_seq_lens_q.tolist())
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    ends, longest = cu_seq_lens_q.int(), int(max_length_q)
    window = (-1, 0) if is_causal else (-1, -1)
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window)[None], None


AttentionInterface.register(NAME, _attention)
