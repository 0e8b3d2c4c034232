"""Top-k, top-p and min-p of `sample_tokens` without a sort: where the kept ids of a row end, as one cut.

One program a row keeps the row's list in registers, bisects over the order of floats for the boundary, then searches
the ids of the ties. A list that does not hold the boundary leaves the row to `sampling_row_filter_triton`, slow and as
exact; so does a second criterion, unless the list is of every kept id.
A list is in no order, so sums over it are of integers: of masses in units of 2^-30 of a bound on their sum. With those
of float32 terms above the list they are accurate to about 10^-7: top-p may end one id apart from the reference where
the reference's own share is that close to top_p.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_bracket_triton import (
    FIRST,
    HIGH,
    LOW,
    MASS,
    MIN_P,
    NO_FILTER,
    ROW_FIELDS,
    TOP_K,
    TOP_LOGIT,
    TOP_P,
    below,
    between,
    least_of_min_p,
    mass_of,
    share_of,
)
from mstar_kernels.sampling_draw_triton import CUT, CUT_FIELDS, KEPT, LAST_TIE, LISTED_HERE, NO_CUT, NOT_FOUND
from mstar_kernels.sampling_list_triton import ABOVE_FIELDS, HIGH_COUNT, HIGH_MASS, NO_ENTRY, id_of, logit_of
from mstar_kernels.sampling_terms_triton import LOWEST, NO_ID, ROW_POINTERS, RUNTIME, key_of, scale_of, value_of


@triton.jit
def _entries(list_row, first, listed, SIZE: tl.constexpr):
    """Logits and ids of a list's entries from `first` on, -inf and NO_ID behind its end."""
    at = first + tl.arange(0, SIZE)
    entry = tl.load(list_row + at, mask=at < listed, other=NO_ENTRY)
    return logit_of(entry), id_of(entry)


@triton.jit
def _unit(mass, highest, listed, top, scale, BY_MASS: tl.constexpr):
    """In what the logits of a list are summed, float32: 1 where they are counted, else about 2^-30 of a bound on their
    mass, by the row's mass, their number and the highest. A power of two, so that a mass of 1 has no rounding.
    """
    bound = tl.minimum(mass.to(tl.float32), listed * mass_of(highest, top, scale))
    bits = tl.maximum(bound * 1.862645149230957e-09, 1e-30).to(tl.int32, bitcast=True) & 0x7F800000
    return bits.to(tl.float32, bitcast=True) if BY_MASS else bound * 0 + 1


@triton.jit
def _units(x, unit, top, scale, BY_MASS: tl.constexpr):
    """What logits sum to, int32: masses in units, or 1 each."""
    if BY_MASS:
        return (mass_of(x, top, scale) * (1 / unit) + 0.5).to(tl.int32)
    else:
        return (x == x).to(tl.int32)


@triton.jit
def _above(
    value, x, units, list_row, listed, unit, top, scale,
    BY_MASS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Mass or number of a list's logits above a value, float64; its first TILE logits are x and sum to `units`."""
    found = tl.sum(tl.where(x > value, units, 0), 0)
    for first in range(TILE, listed, PART):
        x_here, _ = _entries(list_row, first, listed, PART)
        found += tl.sum(tl.where(x_here > value, _units(x_here, unit, top, scale, BY_MASS), 0), 0)
    return found.to(tl.float64) * unit.to(tl.float64)


@triton.jit
def _mass_above(
    value, mass, high, list_row, listed, top, scale, TILE: tl.constexpr, PART: tl.constexpr
):  # fmt: skip
    """Mass of a list's logits above a value, float64."""
    unit = _unit(mass, tl.minimum(high, top), listed, top, scale, True)
    x, _ = _entries(list_row, tl.where(value > float("-inf"), 0, 1), listed, TILE)  # from 0, as in _tie
    units = _units(x, unit, top, scale, True)
    return _above(value, x, units, list_row, listed, unit, top, scale, True, TILE, PART)


@triton.jit
def _ties_through(last, cut, tie_ids, list_row, listed, TILE: tl.constexpr, PART: tl.constexpr):
    """How many of a list's logits equal `cut` at ids up to `last`; tie_ids: such ids of its first TILE, or NO_ID."""
    found = tl.sum((tie_ids <= last).to(tl.int32), 0)
    for first in range(TILE, listed, PART):
        x, ids = _entries(list_row, first, listed, PART)
        found += tl.sum(((x == cut) & (ids <= last)).to(tl.int32), 0)
    return found


@triton.jit
def _tie(cut, needed, list_row, listed, vocabulary, TILE: tl.constexpr, PART: tl.constexpr):
    """An id up to which `needed` of a list's logits equal `cut`, and how many there are, at most `needed`."""
    x, ids = _entries(list_row, tl.minimum(needed, 0), listed, TILE)  # from 0; the compiler keeps no addresses
    tie_ids = tl.where(x == cut, ids, NO_ID)
    last, above, at_last = tl.full([], -1, tl.int32), vocabulary - 1, tl.full([], 0, tl.int32)
    at_above = _ties_through(above, cut, tie_ids, list_row, listed, TILE, PART)
    ties = at_above
    looks = tl.full([], 0, tl.int32)
    is_open = ties > needed
    last = tl.where(is_open, last, NO_ID - 1)
    below_id = tl.full([], -1, tl.int32)
    # Ids of ties are about evenly spread: every other look is where a straight line has the one needed.
    while is_open:
        part = tl.where(looks % 2 == 0, (needed - at_last) / (at_above - at_last).to(tl.float32), 0.5)
        middle = below_id + (part * (above - below_id).to(tl.float32)).to(tl.int32)
        middle = tl.minimum(tl.maximum(middle, below_id + 1), above - 1)
        through = _ties_through(middle, cut, tie_ids, list_row, listed, TILE, PART)
        is_short = through < needed
        below_id, at_last = tl.where(is_short, middle, below_id), tl.where(is_short, through, at_last)
        above, at_above = tl.where(is_short, above, middle), tl.where(is_short, at_above, through)
        last = middle
        is_open = through != needed
        looks += 1
    return last, tl.minimum(ties, needed)


@triton.jit
def _list_cut(
    target, mass, before, high_mass, low, high, list_row, listed, vocabulary, top, scale,
    BY_MASS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The cut of the shortest prefix that reaches the target, a mass or a number, where the list holds its end and
    `before`, less than the target, is above `high`. Returns whether it does; the cut, a logit and the last id among its
    ties; and the mass of the prefix.
    """
    x, _ = _entries(list_row, 0, listed, TILE)
    unit = _unit(mass, tl.minimum(high, top), listed, top, scale, BY_MASS)
    units = _units(x, unit, top, scale, BY_MASS)
    infinity = tl.full([], float("inf"), tl.float32)
    through = before + _above(-infinity, x, units, list_row, listed, unit, top, scale, BY_MASS, TILE, PART)
    holds = (through >= target) | (low == LOWEST)
    # `bottom` has at least the target above it, `ceiling` less.
    bottom = key_of(low, SHIFT) - 1
    ceiling = key_of(tl.minimum(high, top), SHIFT)
    at_ceiling = before
    while holds & (ceiling > bottom + 1):
        middle = between(bottom, ceiling)
        value = value_of(middle, SHIFT)
        at_middle = before + _above(value, x, units, list_row, listed, unit, top, scale, BY_MASS, TILE, PART)
        is_past = at_middle >= target
        bottom, ceiling = tl.where(is_past, middle, bottom), tl.where(is_past, ceiling, middle)
        at_ceiling = tl.where(is_past, at_ceiling, at_middle)
    cut = value_of(ceiling, SHIFT)
    last_tie, kept = tl.full([], NO_ID - 1, tl.int32), at_ceiling
    if holds:
        at_cut = mass_of(cut, top, scale).to(tl.float64)
        missing = (target - at_ceiling) / at_cut if BY_MASS else target - at_ceiling
        needed = tl.minimum(tl.maximum(tl.ceil(missing), 1.0), vocabulary).to(tl.int32)
        last_tie, ties = _tie(cut, needed, list_row, listed, vocabulary, TILE, PART)
        if not BY_MASS:
            kept = high_mass + _mass_above(cut, mass, high, list_row, listed, top, scale, TILE, PART)
        kept += ties.to(tl.float64) * at_cut
    return holds, cut, last_tie, kept


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def filter_kernel(
    temperature,
    top_k,
    top_p,
    min_p,
    rows_in,
    above_in,
    listed,
    lists,
    cuts,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
    SHIFT: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """The cut of row program_id(0), to cuts [R, 4]; where its list does not tell, KEPT is NOT_FOUND."""
    row = tl.program_id(0)
    known = rows_in + row * ROW_FIELDS
    first = tl.load(known + FIRST).to(tl.int32)
    infinity = tl.full([], float("inf"), tl.float32)
    cut, last_tie = -infinity, tl.full([], 0, tl.int32)
    kept, listed_here = tl.full([], 0.0, tl.float64) + NO_CUT, tl.full([], -1, tl.int32)
    if first != NO_FILTER:
        list_row = lists + row.to(tl.int64) * CAPACITY
        chunk = tl.arange(0, CHUNKS)
        above = above_in + row.to(tl.int64) * (chunks * ABOVE_FIELDS) + chunk
        high_mass = tl.sum(tl.load(above + HIGH_MASS * chunks, mask=chunk < chunks, other=0).to(tl.float64), 0)
        high_count = tl.sum(tl.load(above + HIGH_COUNT * chunks, mask=chunk < chunks, other=0).to(tl.float64), 0)
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
        in_list = tl.load(listed + row)
        is_found = in_list <= CAPACITY
        in_list = tl.minimum(in_list, CAPACITY)
        is_complete = high == infinity
        for BY_MASS in tl.static_range(TOP_K, TOP_P + 1):
            if is_found & ((p < 1) if BY_MASS else ((k > 0) & (k < vocabulary))):
                target = share_of(p) * tl.where(kept < 0, mass, kept) if BY_MASS else k.to(tl.float64)
                before = high_mass if BY_MASS else high_count
                is_found = (is_complete | (first == BY_MASS)) & (before < target)
                if is_found:
                    is_found, cut, last_tie, kept = _list_cut(
                        target, mass, before, high_mass, low, high, list_row, in_list, vocabulary, top, scale,
                        BY_MASS, TILE, PART, SHIFT,
                    )  # fmt: skip
        if is_found & (least_share > 0):
            least = least_of_min_p(least_share, t, top)
            if least > cut:
                is_found = is_complete | (first == MIN_P) | (least <= high)
                cut, last_tie = least, last_tie * 0 + (NO_ID - 1)
                kept = high_mass + _mass_above(below(least), mass, high, list_row, in_list, top, scale, TILE, PART)
        # To read the list must pay: the other way, about mass / kept chunks are read until a kept id wins.
        pays = is_complete & is_found & ((in_list + CHUNK - 1) // CHUNK <= 1 + mass / kept)
        listed_here = tl.where(pays, in_list, -1)
        kept = tl.where(is_found, kept, NOT_FOUND)
    tl.store(cuts + row * CUT_FIELDS + CUT, cut)
    tl.store(cuts + row * CUT_FIELDS + LAST_TIE, last_tie)
    tl.store(cuts + row * CUT_FIELDS + KEPT, kept)
    tl.store(cuts + row * CUT_FIELDS + LISTED_HERE, listed_here)
