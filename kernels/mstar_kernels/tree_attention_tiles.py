"""Launch settings of the Triton `tree_attention`: a table by head size and kind of tile. Nothing is tuned at run time.

Measured on an H200 beside 23 others (`python -m benchmarks.gpu.tuning`): none is faster by more than 1.2%. With two
stages the wide tile is up to 35% slower: it waits for keys. Four, beside a narrow tile of less memory, have not been
measured.

By arithmetic: a wide tile of 128 lanes holds the 16 x 7 = 112 lanes of 16 rows of Qwen2.5-VL-7B, so the keys
of a group are read once; a narrow one of 16, the least a tensor core takes, the 7 of a row. A stage holds the keys and
values of a tile: 32 KiB (16 KiB with heads of up to 64). Three stages keep two on their way to an SM from each of its
programs. H200 needs 4.3 TB/s x 0.8 us / 132 SMs = 26 KiB on their way to each SM; three narrow programs (72 KiB of
shared memory, up to 160 registers a thread) fit on one, and a wide program of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mstar_kernels.attention_work import Tiling

MOST_HEAD_DIM = 256
NARROW_PROGRAMS, WIDE_PROGRAMS = 8, 1
"""Programs for each SM. Narrow ones are small enough to even out what the wide ones, launched first, leave uneven; a
wide one fills an SM, and cutting its keys finer costs more: a partial result for each of its many rows."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Settings of a kernel. lanes: (row, query head) pairs; keys: a step's; warps, stages: Triton's num_*."""

    lanes: int
    keys: int
    warps: int
    stages: int


NARROW = {64: Tile(16, 64, 4, 3), 128: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 3)}
WIDE = {64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(64, 32, 8, 3)}
FULL_PRECISION = Tile(16, 16, 4, 2)
"""Both kinds where the arithmetic is in float32 (for tests, and where q and the cache differ in type)."""


def padded(head_dim: int) -> int:
    """Elements of a row of a tile: a power of two, at least the 16 that a tensor core multiplies."""
    return max(16, 1 << (head_dim - 1).bit_length())


def refusal(group: int, head_dim: int) -> str | None:
    """Why the Triton form cannot take these shapes, as (part of) an error message; None if it can."""
    if head_dim > MOST_HEAD_DIM:
        return f"D={head_dim}; allowed with backend='triton': 1 to {MOST_HEAD_DIM}"
    most = WIDE[max(64, padded(head_dim))].lanes
    if group > most:
        return f"H/Hkv={group}; allowed with backend='triton' and D={head_dim}: 1 to {most}"
    return None


def tiles_of(group: int, head_dim: int, q_dtype: torch.dtype, kv_dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Narrow and wide tile for `group` query heads a kv head, of shapes that are not refused."""
    width = max(64, padded(head_dim))
    wide = WIDE[width]
    if q_dtype != kv_dtype or q_dtype == torch.float32:
        return (replace(FULL_PRECISION, lanes=padded(group)),) * 2
    return (NARROW[width] if group <= NARROW[width].lanes else wide), wide


def tiling_of(
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device | str,
) -> Tiling:
    """The tiling that `tree_attention` expects of its work lists, for tensors of these shapes on `device`."""
    narrow, wide = tiles_of(heads // kv_heads, head_dim, q_dtype, kv_dtype)
    device = torch.device(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    group = heads // kv_heads
    return Tiling(
        kv_heads=kv_heads,
        narrow_rows=narrow.lanes // group,
        wide_rows=wide.lanes // group,
        narrow_programs=NARROW_PROGRAMS * processors,
        wide_programs=WIDE_PROGRAMS * processors,
    )
