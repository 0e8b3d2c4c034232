"""Where the ids end that the first of top-k, top-p and min-p keeps, as far as a sample of the row tells.

All three keep a prefix of the ids sorted by (logit descending, id ascending). One program a row brackets the logit at
which the prefix ends; `sampling_list_triton` then lists the ids in the bracket and sums what is above it. The sums tell
whether the bracket holds the end, so the sample may be wrong. Where few ids are above its lower end the bracket has no
upper one: the list holds every kept id, and the draw may need no other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_pass_triton import FIELDS, SCALED, SUM, TOP
from mstar_kernels.sampling_terms_triton import LOWEST, ROW_POINTERS, RUNTIME, is_banned, key_of, scale_of, value_of

TOP_K, TOP_P, MIN_P, NO_FILTER = (tl.constexpr(criterion) for criterion in range(4))
FIRST, LOW, HIGH, TOP_LOGIT, MASS = (tl.constexpr(field) for field in range(5))
"""What is known of a row, float64 [R, 5]: its first criterion; the bracket, ends included; the largest logit; and the
mass of all. The mass of a logit x is e^((x - top) / t)."""
ROW_FIELDS = tl.constexpr(5)


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
def share_of(p):
    """The share that top-p asks for, float64: 0 keeps one id, as any tiny share does."""
    return tl.maximum(p.to(tl.float64), 1e-30)


@triton.jit
def below(value):
    """The float32 before `value`."""
    return value_of(key_of(value, 0) - 1, 0)


@triton.jit
def between(low_key, high_key):
    """The middle of two int32 keys, rounded down, without overflow."""
    return (low_key & high_key) + ((low_key ^ high_key) >> 1)


@triton.jit
def _margin(weight_behind, weight, by_mass, SAMPLE: tl.constexpr):
    """By how much the weight that a sample has behind a logit may be wrong, where an id at the logit weighs `weight`.

    Of ids of weight 1, five standard errors. Of ids that weigh at most `weight`, 3.5 times a bound on one, which are
    five or more where most weigh less. And a few ids.
    """
    variance = tl.where(by_mass, weight_behind * weight, tl.minimum(weight_behind, SAMPLE - weight_behind))
    return tl.where(by_mass, 3.5, 5.0) * tl.sqrt(tl.maximum(variance, 0.0)) + 4 * weight


@triton.jit
def _bracket(x, by_mass, behind, top, scale, SAMPLE: tl.constexpr):
    """Where the boundary is likely to be, (low, high), from SAMPLE logits x. Its ends are keys without their low 16
    bits, or LOWEST and infinity.

    It follows from the weight behind the boundary, `behind` in the sample: of the heaviest ids, which are before it, a
    sample knows nothing. So the lower end is where the sample's weight with a margin for the ids there, not for those
    at the boundary, is still less: a row whose boundary is above the whole sample has one too.
    """
    weight = tl.where(by_mass, mass_of(x, top, scale), 1.0)
    least = key_of(tl.min(tl.where(x > float("-inf"), x, top), 0), 16) - 1
    most = key_of(tl.max(x, 0), 16) + 1
    low_key, above_low, edge, above_edge = least, most, least, most
    while (above_low - low_key > 1) | (above_edge - edge > 1):
        middle = between(low_key, above_low)
        value = value_of(middle, 16)
        through = tl.sum(tl.where(x <= value, weight, 0.0), 0)
        at_value = tl.where(by_mass, mass_of(value, top, scale), 1.0)
        fits = (through + _margin(through, at_value, by_mass, SAMPLE) <= behind) & (above_low - low_key > 1)
        low_key, above_low = tl.where(fits, middle, low_key), tl.where(fits, above_low, tl.maximum(middle, low_key + 1))
        middle = between(edge, above_edge)
        fits = tl.sum(tl.where(x <= value_of(middle, 16), weight, 0.0), 0) <= behind
        fits = fits & (above_edge - edge > 1)
        edge, above_edge = tl.where(fits, middle, edge), tl.where(fits, above_edge, tl.maximum(middle, edge + 1))
    at_edge = tl.where(by_mass, mass_of(value_of(above_edge, 16), top, scale), 1.0)
    allowed = behind + _margin(behind, at_edge, by_mass, SAMPLE)
    under, high_key = edge, most
    while high_key - under > 1:
        middle = between(under, high_key)
        fits = tl.sum(tl.where(x <= value_of(middle, 16), weight, 0.0), 0) <= allowed
        under, high_key = tl.where(fits, middle, under), tl.where(fits, high_key, middle)
    low = tl.where(low_key > least, value_of(low_key, 16), LOWEST)
    high = tl.where(high_key == most, float("inf"), value_of(high_key, 16))
    return low, high


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def bracket_kernel(
    logits,
    logit_rows,
    temperature,
    top_k,
    top_p,
    min_p,
    banned_ids,
    chunks_in,
    rows_out,
    listed,
    vocabulary,
    chunks,
    banned,
    CHUNKS: tl.constexpr,
    SAMPLE: tl.constexpr,
    FEW: tl.constexpr,
):
    """The bracket of row program_id(0), to rows_out [R, 5]; listed int32 [R], the length of its list, becomes 0.

    The list shall hold all ids from LOW on where these are at most FEW, as far as the sample tells.
    """
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
    tl.store(listed + row, 0)
    if first != NO_FILTER:
        lift, factor = scale_of(t)
        top = tl.max(tops, 0)
        mass = tl.sum((scaled * tl.exp2(tl.maximum(tops - top, LOWEST) * lift * factor)).to(tl.float64), 0)
        scale = tl.minimum(lift * factor, -LOWEST)
        low, high = tl.full([], LOWEST, tl.float32), tl.full([], float("inf"), tl.float32)
        if first == MIN_P:
            low = least_of_min_p(least_share, t, top)
        if vocabulary > 2 * SAMPLE:  # groups of four, evenly apart
            place = tl.arange(0, SAMPLE)
            group = (place // 4).to(tl.int64) * (vocabulary // 4) // (SAMPLE // 4)
            ids = group.to(tl.int32) * 4 + place % 4
            x = tl.load(logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary + ids).to(tl.float32)
            if banned > 0:
                x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
            each = vocabulary * (1.0 / SAMPLE)
            if first == MIN_P:
                high = below(low)  # nothing needs a list
            else:
                by_mass = first == TOP_P
                target = tl.where(by_mass, p.to(tl.float64) * mass, k.to(tl.float64))
                behind = (tl.where(by_mass, mass, vocabulary) - target).to(tl.float32) / each
                low, high = _bracket(x, by_mass, behind, top, scale, SAMPLE)
            from_low = tl.sum((x >= low).to(tl.float32), 0)
            high = tl.where((from_low + 5 * tl.sqrt(from_low) + 4) * each <= FEW, float("inf"), high)
        tl.store(out + LOW, low)
        tl.store(out + HIGH, high)
        tl.store(out + TOP_LOGIT, top)
        tl.store(out + MASS, mass)
