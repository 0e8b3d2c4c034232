"""The ids in each row's bracket, listed in one read of the logits, and sums of what is above it.

Every (row, chunk) is a program of its own, as in the pass, and takes room in the row's list from a counter. So the
order in a list is chance; what is made of it does not depend on the order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_bracket_triton import FIRST, HIGH, LOW, NO_FILTER, ROW_FIELDS, TOP_LOGIT, mass_of
from mstar_kernels.sampling_pass_triton import BANNED_HERE, FIELDS, TOP
from mstar_kernels.sampling_terms_triton import LOWEST, ROW_POINTERS, RUNTIME, is_banned, key_of, scale_of, value_of

HIGH_MASS, HIGH_COUNT = (tl.constexpr(field) for field in range(2))
"""Mass and number of a chunk's logits above HIGH, float32 [R, 2, chunks]."""
ABOVE_FIELDS = tl.constexpr(2)
NO_ENTRY = tl.constexpr(-0x7F80000080000001)
"""The entry of -inf and NO_ID."""


@triton.jit
def entry_of(x, ids):
    """int64 entry of a list: the key of a logit, and its id."""
    return (key_of(x, 0).to(tl.int64) << 32) | ids.to(tl.int64)


@triton.jit
def logit_of(entry):
    """The logit of an entry, float32."""
    return value_of((entry >> 32).to(tl.int32), 0)


@triton.jit
def id_of(entry):
    """The id of an entry, int32."""
    return entry.to(tl.int32)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def list_kernel(
    logits,
    logit_rows,
    temperature,
    banned_ids,
    chunks_in,
    rows_in,
    listed,
    lists,
    above_out,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Lists chunk program_id(0) % chunks of row program_id(0) // chunks: entries to lists int64 [R, CAPACITY], from
    listed[row] on, which grows by their number. What is beyond CAPACITY is lost. Sums to above_out [R, 2, chunks].

    A thread loads groups of WIDTH logits. Few are listed: a group's are stored one by one, loaded again.
    """
    GROUPS: tl.constexpr = CHUNK // WIDTH
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    known = rows_in + row * ROW_FIELDS
    found = chunks_in + row.to(tl.int64) * (chunks * FIELDS) + chunk
    # Read at once, since each waits for memory: of a row without a filter most are of no use.
    first = tl.load(known + FIRST)
    low, high = tl.load(known + LOW).to(tl.float32), tl.load(known + HIGH).to(tl.float32)
    top = tl.load(known + TOP_LOGIT).to(tl.float32)
    chunk_top, has_banned = tl.load(found + TOP * chunks), tl.load(found + BANNED_HERE * chunks)
    x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
    t = tl.load(temperature + row)
    if first != NO_FILTER:
        mass, count = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
        if (chunk_top >= low) | (chunk_top > high):
            group, width = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
            begin = chunk * CHUNK + group * WIDTH
            ids = begin[:, None] + width[None, :]
            x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
            if has_banned > 0:
                x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
            if chunk_top > high:
                lift, factor = scale_of(t)
                scale = tl.minimum(lift * factor, -LOWEST)
                mass = tl.sum(tl.sum(tl.where(x > high, mass_of(x, top, scale), 0.0), 1), 0)
                count = tl.sum(tl.sum(tl.where(x > high, 1.0, 0.0), 1), 0)
            is_listed = ((x >= low) & (x <= high)).to(tl.int32)
            left = tl.sum(is_listed << width[None, :], 1)  # a bit for each id of the group to be listed
            number = tl.sum(is_listed, 1)
            in_chunk = tl.sum(number, 0)
            if in_chunk > 0:
                at = tl.atomic_add(listed + row, in_chunk, sem="relaxed") + tl.cumsum(number, 0) - number
                list_row = lists + row.to(tl.int64) * CAPACITY
                for _ in range(0, tl.max(number, 0)):
                    is_left = left > 0
                    lowest = (left & -left).to(tl.float32).to(tl.int32, bitcast=True)
                    id = begin + (lowest >> 23) - 127
                    logit = tl.load(x_row + id, mask=is_left, other=0.0).to(tl.float32)
                    tl.store(list_row + at, entry_of(logit, id), mask=is_left & (at < CAPACITY))
                    left = left & (left - 1)
                    at += 1
        above = above_out + row.to(tl.int64) * (chunks * ABOVE_FIELDS) + chunk
        tl.store(above + HIGH_MASS * chunks, mass)
        tl.store(above + HIGH_COUNT * chunks, count)
