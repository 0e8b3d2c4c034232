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
def _weight(x, top, lift, factor):
    return tl.exp2((x - top) * lift * factor)


@triton.jit
def _load(x_row, list_row, from_list, first, length, has_banned, banned_ids, banned, BLOCK: tl.constexpr):
    """Logits [BLOCK] from place `first` of the row, or of its list; -inf behind the end and where banned."""
    place = first + tl.arange(0, BLOCK)
    if from_list:
        x = tl.load(list_row + place, mask=place < length, other=float("-inf"))
    else:
        x = tl.load(x_row + place, mask=place < length, other=float("-inf")).to(tl.float32)
        if banned > 0:
            if tl.load(has_banned + first // BLOCK) > 0:
                x = tl.where(is_banned(place, banned_ids, banned), float("-inf"), x)
    return x


@triton.jit
def _above(
    value, x_row, list_row, from_list, length, has_banned, banned_ids, banned, top, lift, factor,
    BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mass of the logits above a value, and how many they are: both float64."""
    REPEATS: tl.constexpr = BLOCK // (LANES * WIDTH)
    mass = tl.zeros([LANES], tl.float64)
    count = tl.zeros([LANES], tl.int32)
    for first in range(0, length, BLOCK):
        x = _load(x_row, list_row, from_list, first, length, has_banned, banned_ids, banned, BLOCK)
        x = tl.reshape(x, [REPEATS, LANES, WIDTH])
        is_above = x > value
        weight = tl.where(is_above, _weight(x, top, lift, factor), 0.0)
        mass += tl.sum(tl.sum(weight, 2), 0).to(tl.float64)
        count += tl.sum(tl.sum(is_above.to(tl.int32), 2), 0)
    return tl.sum(mass, 0), tl.sum(count, 0).to(tl.float64)


@triton.jit
def _gather(
    low, high, x_row, list_row, id_row, vocabulary, has_banned, banned_ids, banned, top, lift, factor,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Lists the finite logits in [low, high] and their ids, in order of id, as far as there is room.

    Returns how many they are, how many are above `high`, and the mass of these and of the whole row.
    """
    REPEATS: tl.constexpr = BLOCK // (LANES * WIDTH)
    all_mass = tl.zeros([LANES], tl.float64)
    high_mass = tl.zeros([LANES], tl.float64)
    high_count = tl.zeros([LANES], tl.int32)
    listed = tl.full([], 0, tl.int32)
    for first in tl.range(0, vocabulary, BLOCK, num_stages=STAGES):
        place = first + tl.arange(0, BLOCK)
        x = tl.load(x_row + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
        if banned > 0:
            if tl.load(has_banned + first // BLOCK) > 0:
                x = tl.where(is_banned(place, banned_ids, banned), float("-inf"), x)
        x = tl.reshape(x, [REPEATS, LANES, WIDTH])
        ids = tl.reshape(place, [REPEATS, LANES, WIDTH])
        weight = _weight(x, top, lift, factor)
        is_high = x > high
        all_mass += tl.sum(tl.sum(weight, 2), 0).to(tl.float64)
        high_mass += tl.sum(tl.sum(tl.where(is_high, weight, 0.0), 2), 0).to(tl.float64)
        high_count += tl.sum(tl.sum(is_high.to(tl.int32), 2), 0)
        is_listed = (x >= low) & (x > float("-inf")) & (x <= high)
        counted = is_listed.to(tl.int32)
        before = tl.cumsum(counted, 2) - counted
        of_lane = tl.reshape(tl.sum(counted, 2), [REPEATS * LANES])
        before_lane = tl.reshape(tl.cumsum(of_lane, 0) - of_lane, [REPEATS, LANES])
        at = listed + before_lane[:, :, None] + before
        has_room = is_listed & (at < CAPACITY)
        tl.store(list_row + at, x, mask=has_room)
        tl.store(id_row + at, ids, mask=has_room)
        listed += tl.sum(of_lane, 0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return listed, tl.sum(high_count, 0), tl.sum(high_mass, 0), tl.sum(all_mass, 0)


@triton.jit
def _bracket(
    by_mass, target, total, x_row, vocabulary, banned_ids, banned, top, lift, factor,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Where the boundary is likely to be: (low, high), from SAMPLE logits of the row in groups of four.

    What is before a pivot is what there is less what is behind it, for of the heaviest ids a sample knows nothing. The
    bracket is five standard errors wide to each side, and a few ids.
    """
    SPAN: tl.constexpr = 128
    each = vocabulary.to(tl.float32) / SAMPLE
    apart = vocabulary // 4
    place = tl.arange(0, PIVOTS) * (SAMPLE // PIVOTS)
    ids = ((place // 4).to(tl.int64) * apart // (SAMPLE // 4)).to(tl.int32) * 4 + place % 4
    pivots = tl.load(x_row + ids).to(tl.float32)
    if banned > 0:
        pivots = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), pivots)
    counts = tl.zeros([SPAN, PIVOTS], tl.float32)
    masses = tl.zeros([SPAN, PIVOTS], tl.float32)
    squares = tl.zeros([SPAN, PIVOTS], tl.float32)
    for first in range(0, SAMPLE, SPAN):
        place = first + tl.arange(0, SPAN)
        ids = ((place // 4).to(tl.int64) * apart // (SAMPLE // 4)).to(tl.int32) * 4 + place % 4
        x = tl.load(x_row + ids).to(tl.float32)
        if banned > 0:
            x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
        weight = _weight(x, top, lift, factor)
        is_behind = x[:, None] <= pivots[None, :]
        counts += tl.where(is_behind, 1.0, 0.0)
        masses += tl.where(is_behind, weight[:, None], 0.0)
        squares += tl.where(is_behind, (weight * weight)[:, None], 0.0)
    behind = tl.sum(counts, 0)
    weight_behind = tl.where(by_mass, tl.sum(masses, 0), behind)
    variance = tl.where(by_mass, tl.sum(squares, 0), tl.minimum(behind, SAMPLE - behind))
    at_pivot = tl.where(by_mass, _weight(pivots, top, lift, factor), 1.0)
    margin = (5 * tl.sqrt(variance) + 4 * at_pivot) * each
    before = total.to(tl.float32) - weight_behind * each
    low = tl.max(tl.where(before - margin >= target, pivots, float("-inf")), 0)
    high = tl.min(tl.where(before + margin < target, pivots, float("inf")), 0)
    above_low = SAMPLE - tl.max(tl.where(pivots <= low, behind, 0.0), 0)
    if (above_low + 5 * tl.sqrt(above_low) + 4) * each <= CAPACITY:
        high = tl.min(tl.full([1], float("inf"), tl.float32), 0)
    return low, high


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
    list_ids,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    SHIFT: tl.constexpr,
    CAPACITY: tl.constexpr,
    SAMPLE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The cut of row program_id(0), to cuts [R, 4]; its list, to list_logits and list_ids [R, CAPACITY]."""
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    is_chunk = chunk < chunks
    found = chunks_in + row.to(tl.int64) * (chunks * 6)
    tops = tl.load(found + TOP * chunks + chunk, mask=is_chunk, other=LOWEST)
    sums = tl.load(found + SUM * chunks + chunk, mask=is_chunk, other=0)
    scaled = tl.load(found + SCALED * chunks + chunk, mask=is_chunk, other=0)
    has_banned = found + BANNED_HERE * chunks
    x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
    list_row = list_logits + row.to(tl.int64) * CAPACITY
    id_row = list_ids + row.to(tl.int64) * CAPACITY
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least_share = tl.load(min_p + row)
    lift, factor = scale_of(tl.where(t > 0, t, 1.0))
    top = tl.max(tops, 0)
    mass = tl.sum((scaled * tl.exp2(tl.maximum(tops - top, LOWEST) * lift * factor)).to(tl.float64), 0)
    is_fit = tl.sum(sums, 0) > 0

    cut = tl.full([], float("-inf"), tl.float32)
    low, high = cut, tl.full([], float("inf"), tl.float32)
    kept = tl.full([], -1.0, tl.float64)
    high_mass = tl.full([], 0.0, tl.float64)
    zero = tl.full([], 0, tl.int32)
    last_tie, listed, high_count, is_complete = zero, zero, zero, zero
    by_k = is_fit & (t > 0) & (k > 0) & (k < vocabulary)
    by_p = is_fit & (t > 0) & (p < 1)
    by_min = is_fit & (t > 0) & (least_share > 0)
    for criterion in range(0, 3):
        by_mass = criterion != TOP_K
        least = tl.full([], float("inf"), tl.float32)
        if by_min & (criterion == MIN_P):
            least = _least_of_min_p(least_share, t, top)
        is_due = (by_k & (criterion == TOP_K)) | (by_p & (criterion == TOP_P))
        if is_due | (by_min & (criterion == MIN_P) & (least > cut)):
            share = tl.maximum(p.to(tl.float64), 1e-30)  # 0 keeps one id, as any tiny share does
            if is_complete == 0:
                low, high = tl.full([], float("-inf"), tl.float32), tl.full([], float("inf"), tl.float32)
                if criterion == MIN_P:
                    low = least
                elif vocabulary > CAPACITY:
                    target = tl.where(by_mass, share * tl.where(kept < 0, mass, kept), k.to(tl.float64))
                    total = tl.where(by_mass, mass, vocabulary.to(tl.float64))
                    low, high = _bracket(
                        by_mass, target.to(tl.float32), total, x_row, vocabulary, banned_ids, banned, top, lift, factor,
                        CAPACITY, SAMPLE, PIVOTS,
                    )  # fmt: skip
                listed, high_count, high_mass, mass = _gather(
                    low, high, x_row, list_row, id_row, vocabulary, has_banned, banned_ids, banned, top, lift, factor,
                    CAPACITY, CHUNK, LANES, WIDTH, STAGES,
                )  # fmt: skip
                is_complete = ((high_count == 0) & (listed <= CAPACITY)).to(tl.int32)
            target = tl.where(by_mass, share * tl.where(kept < 0, mass, kept), k.to(tl.float64))
            from_list = listed <= CAPACITY
            length = tl.where(from_list, listed, vocabulary)
            value = value_of(key_of(least, 0) - 1, 0)
            if criterion != MIN_P:
                if is_complete == 0:
                    before = tl.where(by_mass, high_mass, high_count.to(tl.float64))
                    in_list = before * 0
                    if from_list:
                        in_mass, in_count = _above(
                            float("-inf"), x_row, list_row, from_list, length, has_banned, banned_ids, banned, top,
                            lift, factor, CHUNK, LANES, WIDTH,
                        )  # fmt: skip
                        in_list = tl.where(by_mass, in_mass, in_count)
                    if (before >= target) | (before + in_list < target):  # among all, then
                        low, high = tl.full([], float("-inf"), tl.float32), tl.full([], float("inf"), tl.float32)
                        high_count, high_mass = high_count * 0, high_mass * 0
                        from_list = from_list & (listed < 0)
                        length = vocabulary
                # The boundary is the least value that has less than the target above it.
                bottom = (key_of(low, SHIFT) - tl.where(low > float("-inf"), 1, 0)).to(tl.int64)
                ceiling = key_of(tl.minimum(high, top), SHIFT).to(tl.int64)
                while ceiling - bottom > 1:
                    middle = bottom + (ceiling - bottom) // 2
                    above_mass, above_count = _above(
                        value_of(middle.to(tl.int32), SHIFT), x_row, list_row, from_list, length, has_banned,
                        banned_ids, banned, top, lift, factor, CHUNK, LANES, WIDTH,
                    )  # fmt: skip
                    above = tl.where(by_mass, high_mass + above_mass, high_count + above_count)
                    bottom = tl.where(above >= target, middle, bottom)
                    ceiling = tl.where(above >= target, ceiling, middle)
                value = value_of(ceiling.to(tl.int32), SHIFT)
            mass_above, count_above = _above(
                value, x_row, list_row, from_list, length, has_banned, banned_ids, banned, top, lift, factor,
                CHUNK, LANES, WIDTH,
            )  # fmt: skip
            cut, last_tie = tl.where(criterion == MIN_P, least, value), zero + (NO_ID - 1)
            kept = mass_above + high_mass
            if criterion != MIN_P:
                at_cut = _weight(cut, top, lift, factor).to(tl.float64)
                missing = tl.where(by_mass, (target - kept) / at_cut, target - high_count - count_above)
                needed = tl.maximum(tl.ceil(missing), 1.0)
                ties = zero
                for first in range(0, length, CHUNK):
                    x = _load(x_row, list_row, from_list, first, length, has_banned, banned_ids, banned, CHUNK)
                    is_tie = (x == cut).to(tl.int32)
                    here = tl.sum(is_tie, 0)
                    if (ties < needed) & (ties + here >= needed):
                        place = first + tl.arange(0, CHUNK)
                        is_last = (is_tie > 0) & ((tl.cumsum(is_tie, 0) + ties).to(tl.float64) == needed)
                        last_tie = tl.min(tl.where(is_last, place, NO_ID), 0)
                        if from_list:
                            last_tie = tl.load(id_row + last_tie)
                    ties += here
                kept += tl.minimum(needed, ties.to(tl.float64)) * at_cut

    tl.store(cuts + row * 4 + CUT, cut)
    tl.store(cuts + row * 4 + LAST_TIE, last_tie)
    tl.store(cuts + row * 4 + KEPT, kept)
    tl.store(cuts + row * 4 + LISTED, tl.where(is_complete > 0, listed, -1))
