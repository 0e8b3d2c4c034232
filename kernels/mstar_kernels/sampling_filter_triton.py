"""Top-k, top-p and min-p of `sample_tokens` without a sort: where the kept ids of a row end, as one cut.

One program a row bisects over the order of floats for the boundary, in the row's list, then over ids among the ties. A
list that does not hold the boundary sends the row to bisection over its logits, slow and as exact; so does a second
criterion, unless the list is of every kept id.
Sums are of float32 terms in float64, accurate to about 10^-7: top-p may end one id apart from the reference where the
reference's own share is that close to top_p.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_draw_triton import CUT, CUT_FIELDS, KEPT, LAST_TIE, LISTED_HERE
from mstar_kernels.sampling_list_triton import (
    FIRST,
    HIGH,
    HIGH_COUNT,
    HIGH_MASS,
    LISTED,
    LOW,
    LOW_COUNT,
    LOW_MASS,
    MASS,
    MIN_P,
    NO_FILTER,
    ROW_FIELDS,
    TOP_K,
    TOP_LOGIT,
    TOP_P,
    least_of_min_p,
    mass_of,
)
from mstar_kernels.sampling_pass_triton import BANNED_HERE, FIELDS
from mstar_kernels.sampling_terms_triton import (
    LOWEST,
    NO_ID,
    ROW_POINTERS,
    RUNTIME,
    is_banned,
    key_of,
    scale_of,
    value_of,
)


@triton.jit
def _load(
    x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Logits [SIZE] of the row from id `first`; -inf behind its end and where banned."""
    ids = first + tl.arange(0, SIZE)
    x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
    if tl.load(has_banned + first // CHUNK) > 0:
        x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
    return x


@triton.jit
def _above(
    value, x_row, list_row, listed, vocabulary, has_banned, banned_ids, banned, top, scale,
    CHUNK: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mass of the logits above a value and how many they are: of the list, or with `listed` -1 of the row."""
    if listed < 0:
        mass = tl.zeros([PART], tl.float64)
        count = tl.zeros([PART], tl.int32)
        for first in range(0, vocabulary, PART):
            x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK, PART)
            mass += tl.where(x > value, tl.exp2((x - top) * scale), 0.0).to(tl.float64)
            count += (x > value).to(tl.int32)
        return tl.sum(mass, 0), tl.sum(count, 0).to(tl.float64)
    else:
        GROUPS: tl.constexpr = CHUNK // WIDTH
        group_mass = tl.zeros([GROUPS], tl.float64)
        group_count = tl.zeros([GROUPS], tl.float32)
        group, width = tl.arange(0, GROUPS)[:, None], tl.arange(0, WIDTH)[None, :]
        for first in tl.range(0, listed, GROUPS, num_stages=STAGES):
            place = (first + group) * WIDTH + width
            x = tl.load(list_row + place, mask=first + group < listed, other=float("-inf")).to(tl.float32)
            is_above = tl.where(x > value, 1.0, 0.0)
            group_mass += tl.sum(tl.exp2((x - top) * scale) * is_above, 1).to(tl.float64)
            group_count += tl.sum(is_above, 1)
        return tl.sum(group_mass, 0), tl.sum(group_count.to(tl.float64), 0)


@triton.jit
def _tie(
    cut, needed, x_row, list_row, places_row, listed, vocabulary, has_banned, banned_ids, banned,
    CHUNK: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Id of the last of the first `needed` logits equal to `cut`, and how many there are, at most `needed`."""
    ties = tl.full([], 0.0, tl.float64)
    last = tl.full([], NO_ID - 1, tl.int32)
    if listed < 0:
        for first in range(0, vocabulary, PART):
            x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK, PART)
            here = tl.sum((x == cut).to(tl.int32), 0)
            if (ties < needed) & (ties + here >= needed):
                order = tl.cumsum((x == cut).to(tl.int32), 0)
                place = tl.min(tl.where((x == cut) & (order + ties == needed), tl.arange(0, PART), PART), 0)
                last = first + place
            ties += here
    else:
        for first in range(0, listed * WIDTH, CHUNK):
            places = first + tl.arange(0, CHUNK)
            x = tl.load(list_row + places, mask=places < listed * WIDTH, other=float("-inf")).to(tl.float32)
            here = tl.sum((x == cut).to(tl.int32), 0)
            if (ties < needed) & (ties + here >= needed):
                order = tl.cumsum((x == cut).to(tl.int32), 0)
                place = tl.min(tl.where((x == cut) & (order + ties == needed), tl.arange(0, CHUNK), CHUNK), 0)
                last = tl.load(places_row + (first + place) // WIDTH) + (first + place) % WIDTH
            ties += here
    return last, tl.minimum(ties, needed)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def filter_kernel(
    logits,
    logit_rows,
    temperature,
    top_k,
    top_p,
    min_p,
    banned_ids,
    chunks_in,
    rows_in,
    list_logits,
    list_places,
    cuts,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    SHIFT: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """The cut of row program_id(0), to cuts [R, 4]."""
    GROUPS: tl.constexpr = CHUNK // WIDTH
    row = tl.program_id(0)
    known = rows_in + row * ROW_FIELDS
    first_criterion = tl.load(known + FIRST).to(tl.int32)
    infinity, lowest = tl.full([], float("inf"), tl.float32), tl.full([], LOWEST, tl.float32)
    nothing, zero = tl.full([], 0.0, tl.float64), tl.full([], 0, tl.int32)
    cut, last_tie, kept, listed_here = -infinity, zero, nothing - 1, zero - 1
    if first_criterion != NO_FILTER:
        has_banned = chunks_in + row.to(tl.int64) * (chunks * FIELDS) + BANNED_HERE * chunks
        x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
        places_row = list_places + row.to(tl.int64) * (CAPACITY + GROUPS)
        list_row = list_logits + row.to(tl.int64) * (CAPACITY + GROUPS) * WIDTH
        t = tl.load(temperature + row)
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        least_share = tl.load(min_p + row)
        lift, factor = scale_of(t)
        scale = tl.minimum(lift * factor, -LOWEST)
        top = tl.load(known + TOP_LOGIT).to(tl.float32)
        mass = tl.load(known + MASS)
        low = tl.load(known + LOW).to(tl.float32)
        high = tl.load(known + HIGH).to(tl.float32)
        high_mass, high_count = tl.load(known + HIGH_MASS), tl.load(known + HIGH_COUNT)
        share = tl.maximum(p.to(tl.float64), 1e-30)  # 0 keeps one id, as any tiny share does
        target = tl.where(first_criterion == TOP_K, k.to(tl.float64), share * mass)
        before = tl.where(first_criterion == TOP_K, high_count, high_mass)
        low_mass, low_count = tl.load(known + LOW_MASS), tl.load(known + LOW_COUNT)
        through = tl.where(first_criterion == TOP_K, low_count, low_mass)
        holds = (before < target) & ((through >= target) | (low == LOWEST)) | (first_criterion == MIN_P)
        all_listed = tl.load(known + LISTED).to(tl.int32)
        is_usable = holds & (all_listed <= CAPACITY)
        is_complete = is_usable & (high == infinity)
        for criterion in range(0, 3):
            by_mass = criterion != TOP_K
            is_due = ((criterion == TOP_K) & (k > 0) & (k < vocabulary)) | ((criterion == TOP_P) & (p < 1))
            least = infinity
            if (criterion == MIN_P) & (least_share > 0):
                least = least_of_min_p(least_share, t, top)
                is_due = least > cut
            if is_due:
                target = tl.where(by_mass, share * tl.where(kept < 0, mass, kept), k.to(tl.float64))
                use_list = is_usable & (is_complete | (criterion == first_criterion))
                listed = tl.where(use_list, all_listed, -1)
                # The boundary is the least value that has less than the target above it. `bottom` has at least the
                # target above it, or is -inf; `ceiling` has less. In a bracket every other look is where the target
                # would be on a straight line.
                bottom = key_of(tl.where(use_list, low, lowest), SHIFT).to(tl.int64) - 1
                ceiling = key_of(tl.where(use_list, tl.minimum(high, top), top), SHIFT).to(tl.int64)
                mass_above, count_above = tl.where(use_list, high_mass, 0.0), tl.where(use_list, high_count, 0.0)
                at_ceiling = tl.where(by_mass, mass_above, count_above)
                at_bottom = tl.where(
                    by_mass, tl.where(use_list, low_mass, mass), tl.where(use_list, low_count, vocabulary)
                )
                other_mass, other_count = mass_above, count_above
                looks = zero
                if criterion == MIN_P:  # the boundary is known: one look, at the value below it
                    bottom = ceiling - 2
                while ceiling - bottom > 1:
                    part = (at_bottom - target) / (at_bottom - at_ceiling)
                    part = tl.where((looks % 2 == 0) & use_list & (low > LOWEST), part, 0.5)
                    middle = bottom + (part * (ceiling - bottom).to(tl.float64)).to(tl.int64)
                    middle = tl.minimum(tl.maximum(middle, bottom + 1), ceiling - 1)
                    value = value_of(middle.to(tl.int32), SHIFT)
                    if criterion == MIN_P:
                        value = value_of(key_of(least, 0) - 1, 0)
                    value_mass, value_count = _above(
                        value, x_row, list_row, listed, vocabulary, has_banned, banned_ids, banned, top, scale,
                        CHUNK, PART, WIDTH, STAGES,
                    )  # fmt: skip
                    value_mass, value_count = value_mass + other_mass, value_count + other_count
                    above = tl.where(by_mass, value_mass, value_count)
                    is_past = (above >= target) & (criterion != MIN_P)
                    bottom, at_bottom = tl.where(is_past, middle, bottom), tl.where(is_past, above, at_bottom)
                    ceiling, at_ceiling = tl.where(is_past, ceiling, middle), tl.where(is_past, at_ceiling, above)
                    mass_above = tl.where(is_past, mass_above, value_mass)
                    count_above = tl.where(is_past, count_above, value_count)
                    looks += 1
                kept, cut, last_tie = mass_above, value_of(ceiling.to(tl.int32), SHIFT), zero + (NO_ID - 1)
                if criterion == MIN_P:
                    cut = least
                else:
                    at_cut = mass_of(cut, top, scale).to(tl.float64)
                    missing = tl.where(by_mass, (target - kept) / at_cut, target - count_above)
                    needed = tl.maximum(tl.ceil(missing), 1.0)
                    last_tie, ties = _tie(
                        cut, needed, x_row, list_row, places_row, listed, vocabulary, has_banned, banned_ids, banned,
                        CHUNK, PART, WIDTH,
                    )  # fmt: skip
                    kept += ties * at_cut
        # To read the list must pay: the other way, about mass / kept chunks are read until a kept id wins.
        pays = is_complete & ((all_listed * WIDTH + CHUNK - 1) // CHUNK <= 1 + mass / kept)
        listed_here = tl.where(pays, all_listed * WIDTH, -1)
    tl.store(cuts + row * CUT_FIELDS + CUT, cut)
    tl.store(cuts + row * CUT_FIELDS + LAST_TIE, last_tie)
    tl.store(cuts + row * CUT_FIELDS + KEPT, kept)
    tl.store(cuts + row * CUT_FIELDS + LISTED_HERE, listed_here)
