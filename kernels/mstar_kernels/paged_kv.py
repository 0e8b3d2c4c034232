"""Writes into the paged K/V cache: tokens into slots, whole blocks into blocks (copy-on-write of a shared tail).

Every index is checked before the first write: a bad plan must not leave a cache half written. With `checked=True`
nothing is copied to the host, so that a CUDA graph can hold the call; rows that only pad its batch have the slot -1.
"""

from __future__ import annotations

import torch

from mstar_kernels import reference
from mstar_kernels.dispatch import extension, resolve

AVAILABLE = ("triton", "cpu", "reference")
NO_SLOT = -1
"""The slot of a token that is not stored."""


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    backend: str = "auto",
    checked: bool = False,
) -> None:
    """Write the keys and values of T tokens into the cache, in place.

    Args:
        k, v: [T, Hkv, D], of the cache's dtype.
        k_cache, v_cache: [blocks, Hkv, block_size, D], contiguous.
        slots: int32 [T], distinct: slot = block * block_size + offset in the block. -1: the token is not stored.
        backend: "auto", "triton", "cpu" or "reference".
        checked: the caller answers for the values of `slots`.

    Raises:
        ValueError: a shape, dtype or device is wrong, or a slot is out of range or named twice; before any write.
    """
    _check_cache("store_kv", k_cache, v_cache, axes=4)
    blocks, kv_heads, block_size, head_dim = k_cache.shape
    expected = (slots.shape[0] if slots.dim() == 1 else -1, kv_heads, head_dim)
    for name, tensor in (("k", k), ("v", v)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"store_kv: {name} has shape {tuple(tensor.shape)}; expected {list(expected)}")
        if tensor.dtype != k_cache.dtype or tensor.device != k_cache.device:
            raise ValueError(
                f"store_kv: {name} is {tensor.dtype} on {tensor.device}, the cache {k_cache.dtype} on {k_cache.device}"
            )
    _check_indices("store_kv", "slots", slots, k_cache)
    if not checked:
        _check_range("store_kv", "slots", slots, blocks * block_size, least=NO_SLOT)
        _check_distinct("store_kv", "slots", slots[slots != NO_SLOT])
    chosen = resolve(backend, k_cache.device, AVAILABLE)
    if chosen == "triton":
        from mstar_kernels import paged_kv_triton  # here, since Triton is not installed on every platform

        if k.numel():
            paged_kv_triton.launch_store(k, v, k_cache, v_cache, slots)
    elif chosen == "cpu":
        k, v = k.contiguous(), v.contiguous()
        extension().store_kv(
            k.data_ptr(), v.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
            kv_heads, block_size, head_dim, k_cache.element_size(), slots.data_ptr(), slots.shape[0],
        )  # fmt: skip
    else:
        reference.store_kv(k, v, k_cache, v_cache, slots)


def copy_blocks(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    *,
    backend: str = "auto",
    checked: bool = False,
) -> None:
    """Copy whole blocks within the cache, in place: block dst[i] becomes block src[i].

    Args:
        k_cache, v_cache: [blocks, Hkv, block_size, D], contiguous; or [layers, blocks, Hkv, block_size, D], each layer
            contiguous: the same in every layer, on CUDA in one launch.
        src, dst: int32 [C] block ids; destinations are distinct and none is a source.
        backend: "auto", "triton", "cpu" or "reference".
        checked: the caller answers for the values of `src` and `dst`.

    Raises:
        ValueError: a shape, dtype or device is wrong, or a block is out of range, written twice, or both read and
            written; before any write.
    """
    _check_cache("copy_blocks", k_cache, v_cache, axes=k_cache.dim() if k_cache.dim() == 5 else 4)
    blocks, kv_heads, block_size, head_dim = k_cache.shape[-4:]
    if src.dim() != 1 or src.shape != dst.shape:
        raise ValueError(f"copy_blocks: src has shape {tuple(src.shape)}, dst {tuple(dst.shape)}; expected [C] both")
    for name, ids in (("src", src), ("dst", dst)):
        _check_indices("copy_blocks", name, ids, k_cache)
        if not checked:
            _check_range("copy_blocks", name, ids, blocks)
    if not checked:
        _check_distinct("copy_blocks", "dst", dst)
        both = torch.isin(dst, src)
        if bool(both.any()):
            raise ValueError(f"copy_blocks: block {int(dst[both][0])} is in src and in dst")
    chosen = resolve(backend, k_cache.device, AVAILABLE)
    if chosen == "reference":
        reference.copy_blocks(k_cache, v_cache, src, dst)
        return
    if k_cache.dim() == 4:
        k_cache, v_cache = k_cache[None], v_cache[None]
    if chosen == "triton":
        from mstar_kernels import paged_kv_triton  # here, since Triton is not installed on every platform

        if src.numel() and k_cache.numel():
            paged_kv_triton.launch_copy(k_cache, v_cache, src, dst)
        return
    for keys, values in zip(k_cache, v_cache):
        extension().copy_blocks(
            keys.data_ptr(), values.data_ptr(), kv_heads, block_size, head_dim, keys.element_size(),
            src.data_ptr(), dst.data_ptr(), src.shape[0],
        )  # fmt: skip


def _check_cache(op: str, k_cache: torch.Tensor, v_cache: torch.Tensor, axes: int) -> None:
    if k_cache.dim() != axes or v_cache.shape != k_cache.shape:
        raise ValueError(
            f"{op}: k_cache has shape {tuple(k_cache.shape)}, v_cache {tuple(v_cache.shape)}; "
            "expected [blocks, Hkv, block_size, D] both"
        )
    if v_cache.dtype != k_cache.dtype or v_cache.device != k_cache.device:
        raise ValueError(
            f"{op}: k_cache is {k_cache.dtype} on {k_cache.device}, v_cache {v_cache.dtype} on {v_cache.device}"
        )
    for cache in (k_cache, v_cache):
        if not (cache[0] if axes == 5 and len(cache) else cache).is_contiguous():
            raise ValueError(f"{op}: k_cache and v_cache must be contiguous")


def _check_indices(op: str, name: str, ids: torch.Tensor, k_cache: torch.Tensor) -> None:
    if ids.dtype != torch.int32 or ids.dim() != 1 or not ids.is_contiguous():
        raise ValueError(f"{op}: {name} must be a contiguous int32 vector, not {ids.dtype} of shape {tuple(ids.shape)}")
    if ids.device != k_cache.device:
        raise ValueError(f"{op}: {name} is on {ids.device}, the cache on {k_cache.device}")


def _check_range(op: str, name: str, ids: torch.Tensor, limit: int, least: int = 0) -> None:
    outside = (ids < least) | (ids >= limit)
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ValueError(f"{op}: {name}[{at}]={int(ids[at])}; allowed: {least} to {limit - 1}")


def _check_distinct(op: str, name: str, ids: torch.Tensor) -> None:
    ordered = ids.sort().values
    twice = ordered[1:] == ordered[:-1]
    if bool(twice.any()):
        raise ValueError(f"{op}: {name} holds {int(ordered[1:][twice][0])} more than once")
