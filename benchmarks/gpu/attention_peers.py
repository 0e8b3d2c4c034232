"""Decode attention of other libraries on the same keys and values, a page list a row, the prompt's pages shared.

Each function returns one call on one layer's cache. `tree` has a node a row (see `without_sharing`). Not measured here
where the library is not installed; planning happens once, outside the call, as an engine does it once a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mstar_kernels.tree_attention import Tree

WORKSPACE_BYTES = 128 << 20
FLASH_ATTN_PAGE = 256
"""The smallest page that flash-attn's paged form takes."""


def flashinfer_calls(q: Tensor, k_cache: Tensor, v_cache: Tensor, tree: Tree, scale: float) -> Callable[[], Tensor]:
    """FlashInfer reads our cache as it is: [blocks, kv heads, block size, D] is its HND layout."""
    import flashinfer

    rows, pages = tree.block_table.shape
    heads, kv_heads, head_dim, size = q.shape[1], k_cache.shape[1], q.shape[2], k_cache.shape[2]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device), "HND", use_tensor_cores=True
    )
    wrapper.plan(
        torch.arange(rows + 1, dtype=torch.int32, device=q.device) * pages,
        tree.block_table.flatten(),
        (tree.node_length - 1) % size + 1,
        heads,
        kv_heads,
        head_dim,
        size,
        q_data_type=q.dtype,
        kv_data_type=k_cache.dtype,
        sm_scale=scale,
    )
    return lambda: wrapper.run(q, (k_cache, v_cache))


def flash_attn_calls(q: Tensor, k_cache: Tensor, v_cache: Tensor, tree: Tree, scale: float) -> Callable[[], Tensor]:
    """flash-attn wants [pages, page size, kv heads, D] and larger pages: whole pages of the prompt are shared."""
    from flash_attn import flash_attn_with_kvcache

    size = k_cache.shape[2]
    together = FLASH_ATTN_PAGE // size
    short = -tree.block_table.shape[1] % together
    blocks = torch.nn.functional.pad(tree.block_table, (0, short)).unflatten(1, (-1, together))
    pages, table = blocks.flatten(0, 1).unique(dim=0, return_inverse=True)  # rows of a group name the same blocks

    def repaged(cache: Tensor) -> Tensor:
        return cache[pages.long()].transpose(2, 3).flatten(1, 2).contiguous()

    k, v = repaged(k_cache), repaged(v_cache)
    table = table.view(len(q), -1).int()
    return lambda: flash_attn_with_kvcache(
        q[:, None], k, v, cache_seqlens=tree.node_length, block_table=table, softmax_scale=scale
    )[:, 0]
