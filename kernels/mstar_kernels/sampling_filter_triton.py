"""Top-k, top-p and min-p of `sample_tokens` without a sort: what is kept of a row, as one cut.

All three keep a prefix of the ids sorted by (logit descending, id ascending). One program a row finds it in one read: a
sample of the row brackets the boundary, the read sums what is above the bracket and lists what is in it, and bisection
over the order of floats finds the boundary in the list. The sums are exact whatever the sample said: a bracket that does
not hold the boundary, or too many ids, sends the row to bisection over its logits, slow and as exact.

Where little is kept the bracket has no upper end, so that the list holds every kept id, and the draw reads only it.
Sums are of float32 terms in float64, about 10^-7 accurate: top-p may end one id apart from the reference where the
reference's own share is that close to top_p.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_draw_triton import CUT, KEPT, LAST_TIE, LISTED
from mstar_kernels.sampling_pass_triton import BANNED_HERE, SCALED, SUM, TOP
from mstar_kernels.sampling_terms_triton import LOWEST, NO_ID, is_banned, key_of, scale_of, value_of

TOP_K, TOP_P, MIN_P = (tl.constexpr(criterion) for criterion in range(3))


@triton.jit
def _weight(x, top, scale):
    return tl.exp2((x - top) * scale)


@triton.jit
def _load(x_row, first, vocabulary, has_banned, banned_ids, banned, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Logits [GROUPS, WIDTH] of the row from id `first`; -inf behind its end and where banned."""
    ids = first + tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(x_row + ids, mask=ids < vocabulary).to(tl.float32)
    if (first + GROUPS * WIDTH > vocabulary) | (tl.load(has_banned + first // (GROUPS * WIDTH)) > 0):
        x = tl.where((ids < vocabulary) & ~is_banned(ids, banned_ids, banned), x, float("-inf"))
    return x


@triton.jit
def _load_listed(list_row, first, listed, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Logits [GROUPS, WIDTH] of the list from group `first`; -inf behind its end."""
    group = first + tl.arange(0, GROUPS)[:, None]
    place = group * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(list_row + place, mask=group < listed, other=float("-inf")).to(tl.float32)


@triton.jit
def _above(
    value, high, x_row, list_row, listed, vocabulary, has_banned, banned_ids, banned, top, scale,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mass of the logits above a value, up to `high`, and how many they are: of the list, or with `listed` -1 the row."""
    mass = tl.zeros([GROUPS], tl.float64)
    count = tl.zeros([GROUPS], tl.int32)
    length = tl.where(listed < 0, vocabulary, listed * WIDTH)
    for first in range(0, length, GROUPS * WIDTH):
        if listed < 0:
            x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, GROUPS, WIDTH)
        else:
            x = _load_listed(list_row, first // WIDTH, listed, GROUPS, WIDTH)
        is_above = (x > value) & (x <= high)
        mass += tl.sum(tl.where(is_above, _weight(x, top, scale), 0.0), 1).to(tl.float64)
        count += tl.sum(is_above.to(tl.int32), 1)
    return tl.sum(mass, 0), tl.sum(count, 0).to(tl.float64)


@triton.jit
def _gather(
    low, high, x_row, list_row, places_row, vocabulary, has_banned, banned_ids, banned, top, scale,
    CAPACITY: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Lists, in order, the groups of WIDTH logits that have one in [low, high]; what is beyond CAPACITY is lost.

    Returns how many groups that is; mass and number of the logits above `high`; the same of those in [low, high].
    """
    high_mass = tl.zeros([GROUPS], tl.float64)
    mass = tl.zeros([GROUPS], tl.float64)
    counts = tl.zeros([GROUPS], tl.int64)  # of logits in the bracket, and 2^32 times of those above it
    listed = tl.full([], 0, tl.int32)
    group, width = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
    for first in tl.range(0, vocabulary, GROUPS * WIDTH, num_stages=STAGES):
        ids = first + group[:, None] * WIDTH + width[None, :]
        stored = tl.load(x_row + ids, mask=ids < vocabulary)
        if (first + GROUPS * WIDTH > vocabulary) | (tl.load(has_banned + first // (GROUPS * WIDTH)) > 0):
            fits = (ids < vocabulary) & ~is_banned(ids, banned_ids, banned)
            stored = tl.where(fits, stored.to(tl.float32), float("-inf")).to(stored.dtype)
        x = stored.to(tl.float32)
        weight = _weight(x, top, scale)
        is_high, is_inside = x > high, (x >= low) & (x <= high)
        high_mass += tl.sum(tl.where(is_high, weight, 0.0), 1).to(tl.float64)
        mass += tl.sum(tl.where(is_inside, weight, 0.0), 1).to(tl.float64)
        inside = tl.sum(tl.where(is_high, 1 << 16, is_inside.to(tl.int32)), 1)
        counts += (inside & 0xFFFF).to(tl.int64) + ((inside >> 16).to(tl.int64) << 32)
        is_listed = ((inside & 0xFFFF) > 0).to(tl.int32)
        at = tl.minimum(listed, CAPACITY) + tl.cumsum(is_listed, 0) - is_listed
        tl.store(list_row + at[:, None] * WIDTH + width[None, :], stored, mask=(is_listed > 0)[:, None])
        tl.store(places_row + at, first + group * WIDTH, mask=is_listed > 0)
        listed += tl.sum(is_listed, 0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    count = tl.sum(counts, 0)
    return (
        listed,
        tl.sum(high_mass, 0), (count >> 32).to(tl.float64),
        tl.sum(mass, 0), (count & 0xFFFFFFFF).to(tl.float64),
    )  # fmt: skip


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
    weight = tl.where(by_mass, _weight(x, top, scale), 1.0)
    each = vocabulary.to(tl.float32) / SAMPLE
    behind = ((total - target).to(tl.float32) / each) + tl.zeros([2], tl.float32)
    least = key_of(tl.min(tl.where(x > float("-inf"), x, top), 0), 16) - 1
    most = key_of(tl.max(x, 0), 16) + 1
    side = tl.arange(0, 2) * 2 - 1
    below, above = side, side
    for _ in range(0, 2):  # first the boundary itself, then both ends
        below, above = side * 0 + least, side * 0 + most
        while tl.max(above - below, 0) > 1:
            middle = (below + above) // 2
            is_behind = x[:, None] <= value_of(middle, 16)[None, :]
            fits = tl.sum(tl.where(is_behind, weight[:, None], 0.0), 0) <= behind
            below = tl.where(fits, middle, below)
            above = tl.where(fits, above, middle)
        at_boundary = tl.where(by_mass, _weight(value_of(above, 16), top, scale), 1.0)
        variance = behind * tl.where(by_mass, at_boundary, tl.minimum(1.0, (SAMPLE - behind) / behind))
        behind += side * (5 * tl.sqrt(tl.maximum(variance, 0.0)) + 4 * at_boundary)
    low = tl.max(tl.where((side < 0) & (below > least), value_of(below, 16), LOWEST), 0)
    high = tl.max(tl.where(side > 0, tl.where(above < most, value_of(above, 16), float("inf")), float("-inf")), 0)
    above_low = tl.sum((x > low).to(tl.float32), 0)
    everything_fits = (above_low + 5 * tl.sqrt(above_low) + 4) * each <= CAPACITY
    return low, tl.where(everything_fits, float("inf"), high)


@triton.jit
def _least_of_min_p(min_p, t, top):
    """The least float32 x with (x - top) / t >= log(min_p), compared in float64 as the reference compares."""
    least = tl.log(min_p.to(tl.float64))
    guess = (top.to(tl.float64) + t.to(tl.float64) * least).to(tl.float32)
    x = value_of(key_of(guess, 0) - 2 + tl.arange(0, 4), 0)
    passes = (x.to(tl.float64) - top.to(tl.float64)) / t.to(tl.float64) >= least
    return tl.min(tl.where(passes, x, float("inf")), 0)


@triton.jit
def filter_kernel(
    logits,
    logit_rows,
    temperature,
    top_k,
    top_p,
    min_p,
    banned_ids,
    chunks_in,
    cuts,
    list_logits,
    list_places,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    SHIFT: tl.constexpr,
    CAPACITY: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """The cut of row program_id(0), to cuts [R, 4]; its list of groups, to list_logits and list_places."""
    GROUPS: tl.constexpr = CHUNK // WIDTH
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    is_chunk = chunk < chunks
    found = chunks_in + row.to(tl.int64) * (chunks * 6)
    tops = tl.load(found + TOP * chunks + chunk, mask=is_chunk, other=LOWEST)
    sums = tl.load(found + SUM * chunks + chunk, mask=is_chunk, other=0)
    scaled = tl.load(found + SCALED * chunks + chunk, mask=is_chunk, other=0)
    has_banned = found + BANNED_HERE * chunks
    x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
    places_row = list_places + row.to(tl.int64) * (CAPACITY + GROUPS)
    list_row = list_logits + row.to(tl.int64) * (CAPACITY + GROUPS) * WIDTH
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least_share = tl.load(min_p + row)
    lift, factor = scale_of(tl.where(t > 0, t, 1.0))
    scale = tl.minimum(lift * factor, -LOWEST)
    top = tl.max(tops, 0)
    mass = tl.sum((scaled * tl.exp2(tl.maximum(tops - top, LOWEST) * lift * factor)).to(tl.float64), 0)

    lowest, infinity = tl.full([], LOWEST, tl.float32), tl.full([], float("inf"), tl.float32)
    nothing, zero = tl.full([], 0.0, tl.float64), tl.full([], 0, tl.int32)
    cut, last_tie, kept = -infinity, zero, nothing - 1
    low, high, high_mass, high_count = lowest, infinity, nothing, nothing
    listed, is_complete = zero, zero
    is_drawn = (t > 0) & (tl.sum(sums, 0) > 0)
    by_k, by_p, by_min = is_drawn & (k > 0) & (k < vocabulary), is_drawn & (p < 1), is_drawn & (least_share > 0)
    for criterion in range(0, 3):
        by_mass = criterion != TOP_K
        least = infinity
        if by_min & (criterion == MIN_P):
            least = _least_of_min_p(least_share, t, top)
        is_due = (by_k & (criterion == TOP_K)) | (by_p & (criterion == TOP_P))
        if is_due | (by_min & (criterion == MIN_P) & (least > cut)):
            share = tl.maximum(p.to(tl.float64), 1e-30)  # 0 keeps one id, as any tiny share does
            target = tl.where(by_mass, share * tl.where(kept < 0, mass, kept), k.to(tl.float64))
            if is_complete == 0:
                low, high = lowest, infinity
                if criterion == MIN_P:
                    low = least
                elif vocabulary > CAPACITY * WIDTH:
                    low, high = _bracket(
                        by_mass, target, tl.where(by_mass, mass, vocabulary.to(tl.float64)),
                        x_row, vocabulary, banned_ids, banned, top, scale, CAPACITY, SAMPLE,
                    )  # fmt: skip
                listed, high_mass, high_count, list_mass, list_count = _gather(
                    low, high, x_row, list_row, places_row, vocabulary, has_banned, banned_ids, banned, top, scale,
                    CAPACITY, GROUPS, WIDTH, STAGES,
                )  # fmt: skip
                before = tl.where(by_mass, high_mass, high_count)
                through = before + tl.where(by_mass, list_mass, list_count)
                holds = (before < target) & ((through >= target) | (low == LOWEST)) | (criterion == MIN_P)
                if (listed > CAPACITY) | ~holds:  # among all, then
                    low, high, high_mass, high_count = tl.where(holds, low, lowest), infinity, nothing, nothing
                    listed = zero - 1
                is_complete = ((listed >= 0) & (high == infinity)).to(tl.int32)
            # The boundary is the least value that has less than the target above it.
            bottom = key_of(low, SHIFT).to(tl.int64) - 1
            ceiling = key_of(tl.minimum(high, top), SHIFT).to(tl.int64)
            value, mass_above, count_above = least, nothing, nothing
            if criterion == MIN_P:
                bottom = ceiling - 2
            while ceiling - bottom > 1:
                middle = bottom + (ceiling - bottom) // 2
                value = value_of(middle.to(tl.int32), SHIFT)
                if criterion == MIN_P:
                    value = value_of(key_of(least, 0) - 1, 0)
                value_mass, value_count = _above(
                    value, high, x_row, list_row, listed, vocabulary, has_banned, banned_ids, banned, top, scale,
                    GROUPS, WIDTH,
                )  # fmt: skip
                is_past = tl.where(by_mass, high_mass + value_mass, high_count + value_count) >= target
                is_past = is_past & (criterion != MIN_P)
                bottom = tl.where(is_past, middle, bottom)
                ceiling = tl.where(is_past, ceiling, middle)
                mass_above = tl.where(is_past, mass_above, value_mass)
                count_above = tl.where(is_past, count_above, value_count)
            kept = high_mass + mass_above
            cut, last_tie = tl.where(criterion == MIN_P, least, value_of(ceiling.to(tl.int32), SHIFT)), zero + (NO_ID - 1)
            if criterion != MIN_P:
                at_cut = _weight(cut, top, scale).to(tl.float64)
                missing = tl.where(by_mass, (target - kept) / at_cut, target - high_count - count_above)
                needed = tl.maximum(tl.ceil(missing), 1.0)
                ties = zero
                length = tl.where(listed < 0, vocabulary, listed * WIDTH)
                for first in range(0, length, CHUNK):
                    if listed < 0:
                        x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, GROUPS, WIDTH)
                    else:
                        x = _load_listed(list_row, first // WIDTH, listed, GROUPS, WIDTH)
                    is_tie = tl.reshape((x == cut).to(tl.int32), [CHUNK])
                    here = tl.sum(is_tie, 0)
                    if (ties < needed) & (ties + here >= needed):
                        is_last = (is_tie > 0) & ((tl.cumsum(is_tie, 0) + ties).to(tl.float64) == needed)
                        last_tie = first + tl.min(tl.where(is_last, tl.arange(0, CHUNK), CHUNK), 0)
                        if listed >= 0:
                            last_tie = tl.load(places_row + last_tie // WIDTH) + last_tie % WIDTH
                    ties += here
                kept += tl.minimum(needed, ties.to(tl.float64)) * at_cut

    # To read the list must pay: the other way, about mass / kept chunks are read until a kept id wins.
    is_used = (is_complete > 0) & ((listed * WIDTH + CHUNK - 1) // CHUNK <= 1 + mass / kept)
    tl.store(cuts + row * 4 + CUT, cut)
    tl.store(cuts + row * 4 + LAST_TIE, last_tie)
    tl.store(cuts + row * 4 + KEPT, kept)
    tl.store(cuts + row * 4 + LISTED, tl.where(is_used, listed * WIDTH, -1))
