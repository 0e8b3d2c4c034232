"""The ids among which top-k, top-p or min-p of `sample_tokens` end: listed in one read of the row.

All three keep a prefix of the ids sorted by (logit descending, id ascending). A sample of the row brackets where the
prefix ends; the read sums what is above the bracket and lists what is in it. The sums tell whether the bracket holds
the end, so the sample may be wrong. Where little is kept the bracket has no upper end: the list holds every kept id,
and the draw needs no other.
Groups of logits are listed, as many as a thread loads at once, so that they are stored as they were loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_pass_triton import BANNED_HERE, FIELDS, SCALED, SUM, TOP
from mstar_kernels.sampling_terms_triton import LOWEST, ROW_POINTERS, RUNTIME, is_banned, key_of, scale_of, value_of

TOP_K, TOP_P, MIN_P, NO_FILTER = (tl.constexpr(criterion) for criterion in range(4))
FIRST, LISTED, LOW, HIGH, LOW_MASS, LOW_COUNT, HIGH_MASS, HIGH_COUNT, TOP_LOGIT, MASS = (
    tl.constexpr(field) for field in range(10)
)
"""What is known of a row, float64 [R, 10]: its first criterion; how many groups are listed; the bracket; mass and
number of the logits from LOW on, and of those above HIGH; the largest logit; and the mass of all. The mass of a logit x
is e^((x - top) / t)."""
ROW_FIELDS = tl.constexpr(10)


@triton.jit
def mass_of(x, top, scale):
    """Mass of logits, float32."""
    return tl.exp2((x - top) * scale)


@triton.jit
def least_of_min_p(min_p, t, top):
    """The least float32 x with (x - top) / t >= log(min_p), compared in float64 as the reference compares."""
    least = tl.log(min_p.to(tl.float64))
    guess = (top.to(tl.float64) + t.to(tl.float64) * least).to(tl.float32)
    x = value_of(key_of(guess, 0) - 2 + tl.arange(0, 4), 0)
    passes = (x.to(tl.float64) - top.to(tl.float64)) / t.to(tl.float64) >= least
    return tl.min(tl.where(passes, x, float("inf")), 0)


@triton.jit
def _bracket(
    by_mass, target, total, x_row, vocabulary, banned_ids, banned, top, scale,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr,
):  # fmt: skip
    """Where the boundary is likely to be, (low, high), from SAMPLE logits in groups of four, evenly apart.

    It follows from what may be behind the boundary: of the heaviest ids, which are before it, a sample knows nothing.
    The bracket is five standard errors wide to each side, and a few ids; its ends are keys without their low 16 bits.
    """
    place = tl.arange(0, SAMPLE)
    group = (place // 4).to(tl.int64) * (vocabulary // 4) // (SAMPLE // 4)
    ids = group.to(tl.int32) * 4 + place % 4
    x = tl.load(x_row + ids).to(tl.float32)
    if banned > 0:
        x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
    weight = tl.where(by_mass, mass_of(x, top, scale), 1.0)
    each = vocabulary * (1.0 / SAMPLE)
    behind = (total - target).to(tl.float32) / each
    margin = behind * 0
    least = key_of(tl.min(tl.where(x > float("-inf"), x, top), 0), 16) - 1
    most = key_of(tl.max(x, 0), 16) + 1
    low_key, high_key, below, above = least, most, least, most
    for step in range(0, 3):  # the boundary itself, then the low end, then the high one
        below = tl.where(step == 2, below, least)
        above = tl.where(step == 1, above, most)
        allowed = behind + tl.where(step == 0, 0.0, tl.where(step == 1, -margin, margin))
        while above - below > 1:
            middle = (below + above) // 2
            fits = tl.sum(tl.where(x <= value_of(middle, 16), weight, 0.0), 0) <= allowed
            below = tl.where(fits, middle, below)
            above = tl.where(fits, above, middle)
        if step == 0:
            at_boundary = tl.where(by_mass, mass_of(value_of(above, 16), top, scale), 1.0)
            variance = tl.where(by_mass, behind * at_boundary, tl.minimum(behind, SAMPLE - behind))
            margin = 5 * tl.sqrt(tl.maximum(variance, 0.0)) + 4 * at_boundary
        low_key = tl.where(step == 1, below, low_key)
        high_key = tl.where(step == 2, above, high_key)
    low = tl.where(low_key > least, value_of(low_key, 16), LOWEST)
    above_low = tl.sum((x > low).to(tl.float32), 0)
    everything_fits = (above_low + 5 * tl.sqrt(above_low) + 4) * each <= CAPACITY
    high = tl.where(everything_fits | (high_key == most), float("inf"), value_of(high_key, 16))
    return low, high


@triton.jit
def _gather(
    low, high, x_row, list_row, places_row, vocabulary, has_banned, banned_ids, banned, top, scale,
    CAPACITY: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Lists, in order, the groups of WIDTH logits that have one in [low, high], with -inf for those above `high`.

    What is beyond CAPACITY is lost. Returns how many groups these are; mass and number of the logits from `low` on; the
    same of those above `high`.
    """
    low_mass = tl.zeros([GROUPS], tl.float64)
    high_mass = tl.zeros([GROUPS], tl.float64)
    low_count = tl.zeros([GROUPS], tl.float32)
    high_count = tl.zeros([GROUPS], tl.float32)
    listed = tl.full([], 0, tl.int32)
    group, width = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
    for first in tl.range(0, vocabulary, GROUPS * WIDTH, num_stages=STAGES):
        ids = first + group[:, None] * WIDTH + width[None, :]
        read = tl.load(x_row + ids, mask=ids < vocabulary)
        x = read.to(tl.float32)
        if (first + GROUPS * WIDTH > vocabulary) | (tl.load(has_banned + first // (GROUPS * WIDTH)) > 0):
            fits = (ids < vocabulary) & ~is_banned(ids, banned_ids, banned)
            x = tl.where(fits, x, float("-inf"))
        weight = mass_of(x, top, scale)
        # Selections as factors: one instruction each. No logit above `high` is below `low`.
        from_low, above_high = tl.where(x >= low, 1.0, 0.0), tl.where(x > high, 1.0, 0.0)
        low_mass += tl.sum(weight * from_low, 1).to(tl.float64)
        high_mass += tl.sum(weight * above_high, 1).to(tl.float64)
        from_low, above_high = tl.sum(from_low, 1), tl.sum(above_high, 1)
        low_count += from_low
        high_count += above_high
        is_listed = (from_low > above_high).to(tl.int32)
        at = tl.minimum(listed, CAPACITY) + tl.cumsum(is_listed, 0) - is_listed
        kept = tl.where(x > high, float("-inf"), x).to(read.dtype)
        tl.store(list_row + at[:, None] * WIDTH + width[None, :], kept, mask=(is_listed > 0)[:, None])
        tl.store(places_row + at, first + group * WIDTH, mask=is_listed > 0)
        listed += tl.sum(is_listed, 0)
    return (
        listed,
        tl.sum(low_mass, 0), tl.sum(low_count.to(tl.float64), 0),
        tl.sum(high_mass, 0), tl.sum(high_count.to(tl.float64), 0),
    )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def list_kernel(
    logits,
    logit_rows,
    temperature,
    top_k,
    top_p,
    min_p,
    banned_ids,
    chunks_in,
    rows_out,
    list_logits,
    list_places,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    CAPACITY: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """Lists row program_id(0) for its first criterion, to rows_out [R, 10] and, of each group, its logits and first id:
    list_logits [R, CAPACITY + CHUNK / WIDTH, WIDTH], list_places int32.
    """
    GROUPS: tl.constexpr = CHUNK // WIDTH
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    is_chunk = chunk < chunks
    found = chunks_in + row.to(tl.int64) * (chunks * FIELDS)
    tops = tl.load(found + TOP * chunks + chunk, mask=is_chunk, other=LOWEST)
    sums = tl.load(found + SUM * chunks + chunk, mask=is_chunk, other=0)
    scaled = tl.load(found + SCALED * chunks + chunk, mask=is_chunk, other=0)
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least_share = tl.load(min_p + row)
    first = tl.where(p < 1, TOP_P, tl.where(least_share > 0, MIN_P, NO_FILTER))
    first = tl.where((k > 0) & (k < vocabulary), TOP_K, first)
    first = tl.where((t > 0) & (tl.sum(sums, 0) > 0), first, NO_FILTER)
    out = rows_out + row * ROW_FIELDS
    tl.store(out + FIRST, first)
    if first != NO_FILTER:
        lift, factor = scale_of(t)
        top = tl.max(tops, 0)
        mass = tl.sum((scaled * tl.exp2(tl.maximum(tops - top, LOWEST) * lift * factor)).to(tl.float64), 0)
        scale = tl.minimum(lift * factor, -LOWEST)
        x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
        places_row = list_places + row.to(tl.int64) * (CAPACITY + GROUPS)
        list_row = list_logits + row.to(tl.int64) * (CAPACITY + GROUPS) * WIDTH
        low, high = tl.full([], LOWEST, tl.float32), tl.full([], float("inf"), tl.float32)
        if first == MIN_P:
            low = least_of_min_p(least_share, t, top)
        elif vocabulary > 2 * SAMPLE:
            by_mass = first == TOP_P
            target = tl.where(by_mass, p.to(tl.float64) * mass, k.to(tl.float64))
            low, high = _bracket(
                by_mass, target, tl.where(by_mass, mass, vocabulary),
                x_row, vocabulary, banned_ids, banned, top, scale, CAPACITY, SAMPLE,
            )  # fmt: skip
        listed, low_mass, low_count, high_mass, high_count = _gather(
            low, high, x_row, list_row, places_row, vocabulary, found + BANNED_HERE * chunks, banned_ids, banned, top,
            scale, CAPACITY, GROUPS, WIDTH, STAGES,
        )  # fmt: skip
        tl.store(out + LISTED, listed)
        tl.store(out + LOW, low)
        tl.store(out + HIGH, high)
        tl.store(out + LOW_MASS, low_mass)
        tl.store(out + LOW_COUNT, low_count)
        tl.store(out + HIGH_MASS, high_mass)
        tl.store(out + HIGH_COUNT, high_count)
        tl.store(out + TOP_LOGIT, top)
        tl.store(out + MASS, mass)
