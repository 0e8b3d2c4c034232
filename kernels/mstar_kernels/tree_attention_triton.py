"""The Triton form of `tree_attention`: partial attention of the items of a work list, then a merge by log-sum-exp.

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernels run on CPU tensors.

The floor is one read of the tree's keys and values. Qwen2.5-VL-7B (28 query heads, 4 kv heads, D 128, bfloat16), 16
groups of 16 rows, prompt 1500, 500 generated tokens: (16 * 1500 + 256 * 500) keys * 4 * 128 * 2 * 2 bytes = 311 MB a
layer, 72 us at 4.3 TB/s (317 MB where the prompt's last, partly filled block is in every leaf). Every row reading its
whole prefix moves 1.05 GB, 244 us.

What else is moved and done at this shape, with no node cut: 512 partial results of 28 * 130 floats, 7.5 MB written and
7.5 MB read; keys and values pass L2 marked to be evicted first where one tile reads them, so that partial results can
stay there. 10.5 GFLOP, the padding of tiles included (18 us at 600 TFLOP/s) and 20 million exponentials (6 us), in
other warps while copies are on their way.

How. A lane is a (row, query head) pair. A program takes a tile of lanes through the keys of its item, a block table
entry per key: within a page of 16 tokens the keys of a kv head are one run of 16 * D elements (4 KiB here), copied 16
bytes a thread, two steps ahead. Block ids are loaded a step before the copies that need them, into registers; loaded
within the step, Triton would copy them to shared memory and wait for them there, and with them for all other copies.
Partial results are laid out [kv head, slot, query head, D], so that those of a tile are one run.

Wide and narrow tiles are launched on two streams: neither waits for the last program of the other. Within a CUDA graph
they become parallel branches. The grids depend on the work list's capacity alone, so a captured launch serves any list
copied into the same tensors; a program takes every so-many-th pair of item and kv head.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mstar_kernels.attention_work import FIELDS, AttentionWork, workspace_size
from mstar_kernels.tree_attention_tiles import Tile, padded, tiles_of

WIDE, NARROW = 0, 1
MERGE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
LOG2_E = math.log2(math.e)


@triton.jit
def _dot(a, b, sums, WIDEN: tl.constexpr):
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def attend_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    positions,
    counts,
    items,
    tops,
    totals,
    sums,
    kv_heads,
    q_row,
    q_head,
    blocks_per_table,
    max_slots,
    scale,
    softcap,
    window,
    KIND: tl.constexpr,
    FIELDS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    LANES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Items of one kind, a tile of LANES lanes against KEYS keys at a time. Exponents are of two.

    `scale` brings dot products to exponents; with a soft cap, to those of the exponential in the hyperbolic tangent,
    and `softcap` from there.
    """
    lane = tl.arange(0, LANES)
    d = tl.arange(0, WIDTH)
    is_element = d < HEAD_DIM

    before = tl.load(counts) if KIND == 1 else 0
    units = tl.load(counts + KIND) * kv_heads
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        item = items + (before + unit // kv_heads) * FIELDS
        kv_head = unit % kv_heads
        row_begin = tl.load(item + 1)
        row_end = tl.load(item + 2)
        begin = tl.load(item + 3)
        end = tl.load(item + 4)
        slot = tl.load(item + 5)
        table = block_table + tl.load(item + 6).to(tl.int64) * blocks_per_table
        start = tl.load(item + 7)

        # Counted from the item's first row, not from 0: what does not change in the loop is kept in registers.
        row = (row_begin * GROUP + lane) // GROUP
        head = kv_head * GROUP + (row_begin * GROUP + lane) % GROUP
        is_lane = lane < (row_end - row_begin) * GROUP
        is_lane_element = is_lane[:, None] & is_element[None, :]
        q_lane = q + row.to(tl.int64) * q_row + head * q_head
        q_tile = tl.load(q_lane[:, None] + d[None, :], mask=is_lane_element, other=0.0)
        if q_tile.dtype != k_cache.dtype.element_ty:
            q_tile = q_tile.to(tl.float32)
        if HAS_WINDOW:  # the last key that a lane does not see; the tile begins where one of its lanes sees
            hidden = tl.load(positions + row, mask=is_lane, other=2**30) - start - window
            begin = tl.maximum(begin, (tl.min(hidden, 0) + 1) // KEYS * KEYS)

        top = tl.full([LANES], float("-inf"), tl.float32)
        # Where warps share a row, it is summed up behind the loop: in the loop, that would take two barriers a step.
        total = tl.zeros([LANES, KEYS], tl.float32) if LANES == 16 else tl.zeros([LANES], tl.float32)
        weighted = tl.zeros([LANES, WIDTH], tl.float32)
        next_key = begin + tl.arange(0, KEYS)
        block = tl.load(table + next_key // BLOCK_SIZE, mask=next_key < end, other=0)
        for first in tl.range(begin, end, KEYS, num_stages=STAGES):
            key = first + tl.arange(0, KEYS)
            is_key = key < end
            token = (block.to(tl.int64) * kv_heads + kv_head) * (BLOCK_SIZE * HEAD_DIM) + key % BLOCK_SIZE * HEAD_DIM
            next_key = key + KEYS
            block = tl.load(table + next_key // BLOCK_SIZE, mask=next_key < end, other=0)

            at = token[:, None] + d[None, :]
            is_read = is_key[:, None] & is_element[None, :]
            if KIND == 1:
                k = tl.load(k_cache + at, mask=is_read, other=0.0, eviction_policy="evict_first")
                v = tl.load(v_cache + at, mask=is_read, other=0.0, eviction_policy="evict_first")
            else:
                k = tl.load(k_cache + at, mask=is_read, other=0.0)
                v = tl.load(v_cache + at, mask=is_read, other=0.0)
            score = _dot(q_tile, tl.trans(k.to(q_tile.dtype)), tl.zeros([LANES, KEYS], tl.float32), WIDEN) * scale
            if HAS_SOFTCAP:
                score = softcap * (1 - 2 / (tl.exp2(score) + 1))
            is_seen = is_key[None, :]
            if HAS_WINDOW:
                is_seen = is_seen & (key[None, :] > hidden[:, None])
            score = tl.where(is_seen, score, float("-inf"))

            new_top = tl.maximum(top, tl.max(score, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key seen yet
            weight = tl.exp2(score - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink[:, None] + weight if LANES == 16 else total * shrink + tl.sum(weight, 1)
            weighted = _dot(weight.to(q_tile.dtype), v.to(q_tile.dtype), weighted * shrink[:, None], WIDEN)
            top = new_top

        if LANES == 16:
            total = tl.sum(total, 1)
        partial = (kv_head.to(tl.int64) * max_slots + slot) * GROUP
        tl.store(tops + partial + lane, top, mask=is_lane)
        tl.store(totals + partial + lane, total, mask=is_lane)
        tl.store(sums + partial * HEAD_DIM + lane[:, None] * HEAD_DIM + d[None, :], weighted, mask=is_lane_element)


@triton.jit
def _partial(place, end, slots, tops, totals, sums, before, head, d, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The partial result at `place` of a row's list: top and total [HEADS, 1], sums [HEADS, WIDTH]; of no weight behind
    the list's end."""
    place = tl.full([1, 1], 0, tl.int32) + place
    at = (before + tl.load(slots + place, mask=place < end, other=0)) * GROUP + head[:, None]
    is_partial = (place < end) & (head[:, None] < GROUP)
    top = tl.load(tops + at, mask=is_partial, other=float("-inf"))
    total = tl.load(totals + at, mask=is_partial, other=0.0)
    is_element = is_partial & (d[None, :] < HEAD_DIM)
    return top, total, tl.load(sums + at * HEAD_DIM + d[None, :], mask=is_element, other=0.0)


@triton.jit
def _join(top, total, sums, top_2, total_2, sums_2):
    """Two partial results in one."""
    new_top = tl.maximum(top, top_2)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key seen yet
    weight, weight_2 = tl.exp2(top - base), tl.exp2(top_2 - base)
    return new_top, total * weight + total_2 * weight_2, sums * weight + sums_2 * weight_2


@triton.jit
def merge_kernel(
    row_slots,
    slots,
    tops,
    totals,
    sums,
    out,
    kv_heads,
    max_slots,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The output of HEADS query heads of a row a program, from its partial results; zeros without.

    Four are loaded at once, and no tile has a dimension of slots: Triton 3.6 would lay warps along it and join them
    through shared memory (25 us of 116 on an H200).
    """
    row = tl.program_id(0)
    tiles: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // tiles
    begin = tl.load(row_slots + row)
    end = tl.load(row_slots + row + 1)
    head = tl.program_id(1) % tiles * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, WIDTH)
    before = kv_head.to(tl.int64) * max_slots

    top = tl.full([HEADS, 1], float("-inf"), tl.float32)
    total = tl.zeros([HEADS, 1], tl.float32)
    weighted = tl.zeros([HEADS, WIDTH], tl.float32)
    for first in range(begin, end, 4):
        top_0, total_0, sums_0 = _partial(first, end, slots, tops, totals, sums, before, head, d, GROUP, HEAD_DIM)
        top_1, total_1, sums_1 = _partial(first + 1, end, slots, tops, totals, sums, before, head, d, GROUP, HEAD_DIM)
        top_2, total_2, sums_2 = _partial(first + 2, end, slots, tops, totals, sums, before, head, d, GROUP, HEAD_DIM)
        top_3, total_3, sums_3 = _partial(first + 3, end, slots, tops, totals, sums, before, head, d, GROUP, HEAD_DIM)
        top_0, total_0, sums_0 = _join(top_0, total_0, sums_0, top_1, total_1, sums_1)
        top_2, total_2, sums_2 = _join(top_2, total_2, sums_2, top_3, total_3, sums_3)
        top_0, total_0, sums_0 = _join(top_0, total_0, sums_0, top_2, total_2, sums_2)
        top, total, weighted = _join(top, total, weighted, top_0, total_0, sums_0)

    result = weighted / tl.where(total == 0.0, 1.0, total)
    at = (row.to(tl.int64) * kv_heads + kv_head) * GROUP + head[:, None]
    is_output = (head[:, None] < GROUP) & (d[None, :] < HEAD_DIM)
    tl.store(out + at * HEAD_DIM + d[None, :], result.to(out.dtype.element_ty), mask=is_output)


def launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    positions: Tensor,
    work: AttentionWork,
    workspace: Tensor,
    out: Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    """Fill out [R, H, D], contiguous, of R of at least 1. Nothing depends on the contents of tensors. Unchecked.

    workspace: float32, of at least `workspace_size(work, heads, head_dim)` elements.
    """
    rows, heads, head_dim = q.shape
    kv_heads, block_size = k_cache.shape[1:3]
    group = heads // kv_heads
    max_slots = work.slots.shape[0]
    sums, tops, totals = workspace[: workspace_size(work, heads, head_dim)].split(
        [max_slots * heads * head_dim, max_slots * heads, max_slots * heads]
    )
    width = padded(head_dim)
    exponent = scale * LOG2_E if softcap is None else 2 * scale * LOG2_E / softcap

    def attend(kind: int, tile: Tile, programs: int) -> None:
        attend_kernel[(programs,)](
            q, k_cache, v_cache, block_table, positions, work.counts, work.items, tops, totals, sums,
            kv_heads, q.stride(0), q.stride(1), block_table.stride(0), max_slots,
            exponent, (softcap or 0.0) * LOG2_E, min(sliding_window or 0, 2**31 - 1),
            KIND=kind, FIELDS=FIELDS, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
            HAS_SOFTCAP=softcap is not None, HAS_WINDOW=sliding_window is not None,
            LANES=tile.lanes, KEYS=tile.keys, WIDTH=width, STAGES=tile.stages, WIDEN=not q.is_cuda,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip

    narrow, wide = tiles_of(group, head_dim, q.dtype, k_cache.dtype)
    with torch.cuda.device_of(q):
        if q.is_cuda:
            main, side = torch.cuda.current_stream(), _side_stream(q.device.index)
            side.wait_stream(main)
            with torch.cuda.stream(side):
                attend(WIDE, wide, work.tiling.wide_programs)
            attend(NARROW, narrow, work.tiling.narrow_programs)
            main.wait_stream(side)
        else:
            attend(WIDE, wide, work.tiling.wide_programs)
            attend(NARROW, narrow, work.tiling.narrow_programs)
        merged = merge_heads(group, width)
        merge_kernel[(rows, kv_heads * triton.cdiv(group, merged))](
            work.row_slots, work.slots, tops, totals, sums, out, kv_heads, max_slots,
            GROUP=group, HEAD_DIM=head_dim, HEADS=merged, WIDTH=width, **MERGE_OPTIONS,
        )  # fmt: skip


def merge_heads(group: int, width: int) -> int:
    """Query heads that a program of the merge takes: 1,024 numbers of a partial result, 4 KiB, at most."""
    return min(triton.next_power_of_2(group), max(1, 1024 // width))


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Of high priority: the wide programs are the longest and should start first."""
    return torch.cuda.Stream(device, priority=-1)
