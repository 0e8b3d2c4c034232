"""The pass of `sample_tokens` over the logits: what a chunk of a row leaves for the draw.

Every (row, chunk) is a program of its own, so that few rows fill the chip too; how a row is cut depends on the
vocabulary alone, so what is found does not depend on the batch. A lane keeps sums of its own from tile to tile and no
lane waits for another before the end.

A chunk leaves its largest logit, three sums relative to it, and a bound on its best score, but no token: the draw looks
for that in the one or two chunks whose bound may win. So an element costs about 20 instructions (23 where two
temperatures need two exponentials), and the noise needs no logarithm: float32 bits are a logarithm, at most 0.0861
too small, so with p = e^((x - top) / t) and the hash h as floats,
    log2(p / h) <= (bits(p) - bits(h)) 2^-23 + 0.0861,  and the score in bits, log2(p / -log(1 - v)), is at most
that + 32 since -log(1 - v) >= v >= h 2^-32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_terms_triton import (
    LOG2_E,
    LOWEST,
    ROW_POINTERS,
    RUNTIME,
    holds_banned,
    is_banned,
    row_keys,
    scale_of,
    unfinished_hash,
)

TOP, SUM, WEIGHTED, SCALED, BEST, BANNED_HERE = (tl.constexpr(field) for field in range(6))
"""What a chunk leaves: its largest logit; sums of e^d, d e^d and e^(d / t), d = x - top; the largest of
(bits(p) - bits(h)) 2^-23; and 1 where it holds banned ids. A sum is NaN where a logit is NaN or +inf, 0 where none is
finite."""
FIELDS = tl.constexpr(6)


@triton.jit
def _fold(
    x, start, top, total, weighted, scaled, best, lift, factor, k,
    CAREFUL: tl.constexpr, NOISE: tl.constexpr, AT_ONE: tl.constexpr,
):  # fmt: skip
    """Add a tile x [REPEATS, LANES, WIDTH], whose hashes begin from `start`, to what each lane has.

    Without CAREFUL, -inf makes `weighted` NaN, and t is neither 0 nor tiny. AT_ONE: t is 1, and scaled is total.
    """
    new = tl.maximum(top, tl.max(tl.max(x, 2), 0))
    shift = tl.maximum(top - new, LOWEST)
    decay = tl.exp2(shift * LOG2_E)
    d = x - new[None, :, None]
    if CAREFUL:
        d = tl.maximum(d, LOWEST)
    e = tl.exp2(d * LOG2_E)
    weighted = weighted * decay + shift * decay * total + tl.sum(tl.sum(d * e, 2), 0)
    total = total * decay + tl.sum(tl.sum(e, 2), 0)
    if NOISE:
        if AT_ONE:
            shift = shift * LOG2_E
        else:
            if CAREFUL:
                shift, d = shift * lift, d * lift
            shift = shift * factor
            e = tl.exp2(d * factor)
            scaled = scaled * tl.exp2(shift) + tl.sum(tl.sum(e, 2), 0)
        h = unfinished_hash(start, k).to(tl.float32)
        gap = e.to(tl.int32, bitcast=True) - h.to(tl.int32, bitcast=True)
        gap = tl.max(tl.max(gap, 2), 0).to(tl.float32) * 1.1920928955078125e-07
        best = tl.maximum(best + shift, gap)
    return new, total, weighted, scaled, best


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def pass_kernel(
    logits,
    logit_rows,
    temperature,
    seed,
    problem,
    sample,
    position,
    banned_ids,
    chunks_out,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    REPEATS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    BANNED: tl.constexpr,
):
    """What a chunk leaves, to chunks_out [R, FIELDS, chunks]; a program each, the chunks of a row together."""
    TILE: tl.constexpr = REPEATS * LANES * WIDTH
    row, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, vocabulary)
    repeat, lane, width = tl.arange(0, REPEATS), tl.arange(0, LANES), tl.arange(0, WIDTH)
    in_repeat = (repeat[:, None, None] * (LANES * WIDTH)) + width[None, None, :]
    at_lane = lane * WIDTH
    place = tl.arange(0, TILE)
    x_row = logits + tl.load(logit_rows + row).to(tl.int64) * vocabulary
    t = tl.load(temperature + row)
    lift, factor = scale_of(tl.where(t > 0, t, 1.0))
    k0, k = row_keys(seed, problem, sample, position, row)
    # Multiplied apart, so that an element's id costs one addition of a constant.
    element_hash = in_repeat.to(tl.uint32) * 0x9E3779B1
    has_banned = holds_banned(banned_ids, banned, begin, end, BANNED)

    nothing = tl.zeros([LANES], tl.float32)
    top, best = nothing + LOWEST, nothing - float("inf")
    total, weighted, scaled = nothing, nothing, nothing
    careful = (has_banned > 0) | (begin + CHUNK > vocabulary) | (lift != 1)
    if not careful:
        if t == 0:
            for first in tl.range(begin, begin + CHUNK, TILE, num_stages=STAGES):
                x = tl.reshape(tl.load(x_row + first + place).to(tl.float32), [REPEATS, LANES, WIDTH])
                start = ((first + at_lane).to(tl.uint32) * 0x9E3779B1 + k0)[None, :, None] + element_hash
                top, total, weighted, scaled, best = _fold(
                    x, start, top, total, weighted, scaled, best, lift, factor, k, False, False, False
                )
        elif t == 1:
            for first in tl.range(begin, begin + CHUNK, TILE, num_stages=STAGES):
                x = tl.reshape(tl.load(x_row + first + place).to(tl.float32), [REPEATS, LANES, WIDTH])
                start = ((first + at_lane).to(tl.uint32) * 0x9E3779B1 + k0)[None, :, None] + element_hash
                top, total, weighted, scaled, best = _fold(
                    x, start, top, total, weighted, scaled, best, lift, factor, k, False, True, True
                )
            scaled = total
        else:
            for first in tl.range(begin, begin + CHUNK, TILE, num_stages=STAGES):
                x = tl.reshape(tl.load(x_row + first + place).to(tl.float32), [REPEATS, LANES, WIDTH])
                start = ((first + at_lane).to(tl.uint32) * 0x9E3779B1 + k0)[None, :, None] + element_hash
                top, total, weighted, scaled, best = _fold(
                    x, start, top, total, weighted, scaled, best, lift, factor, k, False, True, False
                )
        check = tl.sum(weighted, 0)
        careful = check != check
    is_unfit = tl.zeros([LANES], tl.int32)
    if careful:
        top, best = nothing + LOWEST, nothing - float("inf")
        total, weighted, scaled = nothing, nothing, nothing
        for first in tl.range(begin, end, TILE, num_stages=STAGES):
            ids = first + place
            x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
            if has_banned > 0:
                x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
            x = tl.reshape(x, [REPEATS, LANES, WIDTH])
            is_unfit |= tl.max(tl.max(((x != x) | (x == float("inf"))).to(tl.int32), 2), 0)
            start = ((first + at_lane).to(tl.uint32) * 0x9E3779B1 + k0)[None, :, None] + element_hash
            top, total, weighted, scaled, best = _fold(
                x, start, top, total, weighted, scaled, best, lift, factor, k, True, True, False
            )

    chunk_top = tl.max(top, 0)
    shift = tl.maximum(top - chunk_top, LOWEST)
    decay = tl.exp2(shift * LOG2_E)
    weighted = tl.sum(weighted * decay + shift * decay * total, 0)
    total = tl.where(tl.max(is_unfit, 0) > 0, float("nan"), tl.sum(total * decay, 0))
    shift = shift * lift * factor
    out = chunks_out + row.to(tl.int64) * (chunks * FIELDS) + chunk
    tl.store(out + TOP * chunks, chunk_top)
    tl.store(out + SUM * chunks, total)
    tl.store(out + WEIGHTED * chunks, weighted)
    tl.store(out + SCALED * chunks, tl.sum(scaled * tl.exp2(shift), 0))
    tl.store(out + BEST * chunks, tl.max(best + shift, 0))
    tl.store(out + BANNED_HERE * chunks, has_banned.to(tl.float32))
