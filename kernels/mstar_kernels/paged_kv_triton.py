"""The Triton forms of `store_kv` and `copy_blocks`: moves of bits, each launch as wide as the device likes.

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernels run on CPU tensors.

A program stores all kv heads of a token or two, keys and values. The floor is a launch: 256 rows of Qwen2.5-VL-7B (4 kv
heads, D 128, bfloat16) are 0.5 MB read and 0.5 MB written a layer, 0.25 us at 4.3 TB/s. So K and V are read where they
lie, with the strides of the model's projection; a contiguous copy first would be two more launches.

Why rotary embedding is not fused. The model has rotated K before it is stored, in a launch that rotates Q too. Storing
from there would save one write and one read of K, 2 * 256 * 4 * 128 * 2 bytes = 0.5 MB or 0.12 us of a layer that
reads 311 MB of cache and 466 MB of weights, and no launch: Q must still be rotated. It would take a path of its own
for every model family.

Blocks are copied in all layers by one launch: 28 layers in one instead of in 28.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
TILE = 1024
"""Elements that a program stores, keys and values each: 16 bytes a thread in bfloat16. More where a token has more."""
COPY = 4096
"""Elements that a program copies at a time."""


@triton.jit
def store_kernel(
    k,
    v,
    k_cache,
    v_cache,
    slots,
    tokens,
    kv_heads,
    k_token,
    k_head,
    k_element,
    v_token,
    v_head,
    v_element,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Stores TOKENS tokens a program; none in a slot below 0."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token, mask=token < tokens, other=-1)
    head = tl.arange(0, HEADS)
    d = tl.arange(0, WIDTH)
    is_stored = (slot >= 0)[:, None, None] & (head < kv_heads)[None, :, None] & (d < HEAD_DIM)[None, None, :]

    block = (slot // BLOCK_SIZE).to(tl.int64)
    at = ((block * kv_heads)[:, None] + head[None, :]) * (BLOCK_SIZE * HEAD_DIM)
    at = (at + (slot % BLOCK_SIZE * HEAD_DIM)[:, None])[:, :, None] + d[None, None, :]
    k_at = (token.to(tl.int64) * k_token)[:, None] + head[None, :] * k_head
    v_at = (token.to(tl.int64) * v_token)[:, None] + head[None, :] * v_head
    keys = tl.load(k + k_at[:, :, None] + d[None, None, :] * k_element, mask=is_stored)
    values = tl.load(v + v_at[:, :, None] + d[None, None, :] * v_element, mask=is_stored)
    tl.store(k_cache + at, keys, mask=is_stored)
    tl.store(v_cache + at, values, mask=is_stored)


@triton.jit
def copy_kernel(k_cache, v_cache, src, dst, k_layer, v_layer, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Copies one block of SIZE elements of K and of V, in one layer, a program."""
    source = tl.load(src + tl.program_id(0)).to(tl.int64) * SIZE
    target = tl.load(dst + tl.program_id(0)).to(tl.int64) * SIZE
    keys = k_cache + tl.program_id(1).to(tl.int64) * k_layer
    values = v_cache + tl.program_id(1).to(tl.int64) * v_layer
    for first in range(0, SIZE, WIDTH):
        i = first + tl.arange(0, WIDTH)
        is_element = i < SIZE
        a = tl.load(keys + source + i, mask=is_element)
        b = tl.load(values + source + i, mask=is_element)
        tl.store(keys + target + i, a, mask=is_element)
        tl.store(values + target + i, b, mask=is_element)


def store_tile(kv_heads: int, head_dim: int) -> dict[str, int]:
    """Sizes of the tile that a program stores."""
    heads, width = triton.next_power_of_2(kv_heads), triton.next_power_of_2(head_dim)
    return {"TOKENS": max(1, TILE // (heads * width)), "HEADS": heads, "WIDTH": width}


def launch_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store k and v [T, Hkv, D], of any strides, T at least 1. Unchecked."""
    kv_heads, block_size, head_dim = k_cache.shape[1:]
    tile = store_tile(kv_heads, head_dim)
    with torch.cuda.device_of(k_cache):
        store_kernel[(triton.cdiv(len(slots), tile["TOKENS"]),)](
            k, v, k_cache, v_cache, slots, len(slots), kv_heads, *k.stride(), *v.stride(),
            HEAD_DIM=head_dim, BLOCK_SIZE=block_size, **tile, **OPTIONS,
        )  # fmt: skip


def launch_copy(k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy blocks within each layer of k_cache and v_cache, [layers, blocks, Hkv, block_size, D]. Unchecked."""
    size = k_cache[0, 0].numel()
    with torch.cuda.device_of(k_cache):
        copy_kernel[(len(src), len(k_cache))](
            k_cache, v_cache, src, dst, k_cache.stride(0), v_cache.stride(0),
            SIZE=size, WIDTH=min(COPY, triton.next_power_of_2(size)), **OPTIONS,
        )  # fmt: skip
