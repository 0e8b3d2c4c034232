"""The paged K/V cache: one pool of blocks per layer, addressed by the scheduler's block ids."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mstar_engine.models.compatibility import KVShape


class KVCache:
    """`keys[layer]` and `values[layer]` are [num_blocks, kv_heads, block_size, head_dim] views of one allocation."""

    def __init__(self, shape: KVShape, num_blocks: int, block_size: int) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.block_size = block_size
        size = (shape.layers, 2, num_blocks, shape.kv_heads, block_size, shape.head_dim)
        try:
            self.storage = torch.empty(size, dtype=shape.dtype, device=shape.device)
        except (RuntimeError, MemoryError) as error:
            gib = num_blocks * block_size * shape.bytes_per_token / 2**30
            raise ValueError(
                f"rollout: no memory for a K/V cache of {gib:.1f} GiB ({num_blocks} blocks of {block_size} tokens); "
                "lower rollout.kv_cache_memory, rollout.max_rows or rollout.max_completion_length"
            ) from error
        self.keys = [self.storage[layer, 0] for layer in range(shape.layers)]
        self.values = [self.storage[layer, 1] for layer in range(shape.layers)]


def memory_limit(shape: KVShape, kept: int = 0) -> int:
    """Bytes the cache may take when nothing was asked for: a share of what the device has free, `kept` bytes of a cache
    that it replaces counted in."""
    if shape.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(shape.device)
        return int((free + kept) * 0.8)
    return min((_available() + kept) // 4, 8 * 2**30)


def _available() -> int:
    """Bytes of host memory that can be had without swapping; the page cache counts as free."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
