"""Where the filters of `sample_tokens` end, looked for in the whole row: slow, for rows whose list does not tell.

One program a row bisects over the order of floats for the boundary, then reads the row once more for the ties.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_bracket_triton import (
    MASS,
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
from mstar_kernels.sampling_draw_triton import CUT, CUT_FIELDS, KEPT, LAST_TIE, LISTED_HERE, NOT_FOUND
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
    x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK: tl.constexpr
):  # fmt: skip
    """Logits [CHUNK] of the row from id `first`; -inf behind its end and where banned."""
    ids = first + tl.arange(0, CHUNK)
    x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
    if tl.load(has_banned + first // CHUNK) > 0:
        x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
    return x


@triton.jit
def _above(
    value, x_row, vocabulary, has_banned, banned_ids, banned, top, scale, CHUNK: tl.constexpr
):  # fmt: skip
    """Mass of the row's logits above a value and how many they are, float64."""
    mass = tl.zeros([CHUNK], tl.float64)
    count = tl.zeros([CHUNK], tl.int32)
    for first in range(0, vocabulary, CHUNK):
        x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK)
        mass += tl.where(x > value, mass_of(x, top, scale), 0.0).to(tl.float64)
        count += (x > value).to(tl.int32)
    return tl.sum(mass, 0), tl.sum(count, 0).to(tl.float64)


@triton.jit
def _tie(
    cut, needed, x_row, vocabulary, has_banned, banned_ids, banned, CHUNK: tl.constexpr
):  # fmt: skip
    """Id of the last of the first `needed` logits equal to `cut`, and how many there are, at most `needed`."""
    ties = tl.full([], 0.0, tl.float64)
    last = tl.full([], NO_ID - 1, tl.int32)
    for first in range(0, vocabulary, CHUNK):
        x = _load(x_row, first, vocabulary, has_banned, banned_ids, banned, CHUNK)
        here = tl.sum((x == cut).to(tl.int32), 0)
        if (ties < needed) & (ties + here >= needed):
            order = tl.cumsum((x == cut).to(tl.int32), 0)
            place = tl.min(tl.where((x == cut) & (order + ties == needed), tl.arange(0, CHUNK), CHUNK), 0)
            last = first + place
        ties += here
    return last, tl.minimum(ties, needed)


@triton.jit
def _row_cut(
    target, x_row, vocabulary, has_banned, banned_ids, banned, top, scale,
    BY_MASS: tl.constexpr, CHUNK: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The cut (logit, last id among the ties) of the shortest prefix of the row's ids that reaches the target, a mass
    or a number, and the mass of the prefix.
    """
    bottom = key_of(tl.full([], LOWEST, tl.float32), SHIFT) - 1  # has at least the target above it
    ceiling = key_of(top, SHIFT)  # has less
    mass_above, count_above = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    while ceiling > bottom + 1:
        middle = between(bottom, ceiling)
        mass, count = _above(
            value_of(middle, SHIFT), x_row, vocabulary, has_banned, banned_ids, banned, top, scale, CHUNK,
        )  # fmt: skip
        is_past = (mass if BY_MASS else count) >= target
        bottom, ceiling = tl.where(is_past, middle, bottom), tl.where(is_past, ceiling, middle)
        mass_above, count_above = tl.where(is_past, mass_above, mass), tl.where(is_past, count_above, count)
    cut = value_of(ceiling, SHIFT)
    at_cut = mass_of(cut, top, scale).to(tl.float64)
    missing = (target - mass_above) / at_cut if BY_MASS else target - count_above
    needed = tl.maximum(tl.ceil(missing), 1.0)
    last_tie, ties = _tie(cut, needed, x_row, vocabulary, has_banned, banned_ids, banned, CHUNK)
    return cut, last_tie, mass_above + ties * at_cut


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def row_filter_kernel(
    logits,
    logit_rows,
    temperature,
    top_k,
    top_p,
    min_p,
    banned_ids,
    chunks_in,
    rows_in,
    cuts,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The cut of row program_id(0), in cuts [R, 4], where its KEPT is NOT_FOUND."""
    row = tl.program_id(0)
    out = cuts + row * CUT_FIELDS
    kept = tl.load(out + KEPT)
    if kept == NOT_FOUND:
        has_banned = chunks_in + row.to(tl.int64) * (chunks * FIELDS) + BANNED_HERE * chunks
        x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
        t = tl.load(temperature + row)
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        least_share = tl.load(min_p + row)
        lift, factor = scale_of(t)
        scale = tl.minimum(lift * factor, -LOWEST)
        top = tl.load(rows_in + row * ROW_FIELDS + TOP_LOGIT).to(tl.float32)
        kept = tl.load(rows_in + row * ROW_FIELDS + MASS)
        cut, last_tie = tl.full([], float("-inf"), tl.float32), tl.full([], NO_ID - 1, tl.int32)
        for BY_MASS in tl.static_range(TOP_K, TOP_P + 1):
            if (p < 1) if BY_MASS else ((k > 0) & (k < vocabulary)):
                cut, last_tie, kept = _row_cut(
                    share_of(p) * kept if BY_MASS else k.to(tl.float64),
                    x_row, vocabulary, has_banned, banned_ids, banned, top, scale, BY_MASS, CHUNK, SHIFT,
                )  # fmt: skip
        if least_share > 0:
            least = least_of_min_p(least_share, t, top)
            if least > cut:
                cut, last_tie = least, last_tie * 0 + (NO_ID - 1)
                kept, _ = _above(
                    below(least), x_row, vocabulary, has_banned, banned_ids, banned, top, scale, CHUNK
                )  # fmt: skip
        tl.store(out + CUT, cut)
        tl.store(out + LAST_TIE, last_tie)
        tl.store(out + KEPT, kept)
        tl.store(out + LISTED_HERE, -1)
