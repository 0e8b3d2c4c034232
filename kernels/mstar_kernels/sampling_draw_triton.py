"""The draw of `sample_tokens`: from what the pass left of each chunk to a token and its log-probabilities.

One program a row. A chunk is looked at only while its bound allows a better score than the best found, so one or two
are; nor is an id scored, in double precision as the reference scores all, unless its own bound allows it. Rows whose
filters leave few ids are drawn from the list of these instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mstar_kernels.sampling_list_triton import NO_ENTRY, id_of, logit_of
from mstar_kernels.sampling_pass_triton import BANNED_HERE, BEST, FIELDS, SCALED, SUM, TOP, WEIGHTED
from mstar_kernels.sampling_terms_triton import (
    LOG2_E,
    LOWEST,
    NO_ID,
    ROW_POINTERS,
    RUNTIME,
    exact_noise,
    hashes,
    is_banned,
    row_keys,
    scale_of,
)

ROUNDING = tl.constexpr(0.001)
"""More than float32 may err in a bound that may win, in bits: such bounds are of terms below 100."""
UNFIT, NOTHING_FINITE = tl.constexpr(-1), tl.constexpr(-2)
"""Tokens of rows that hold NaN or +inf, and of rows with no finite logit."""

CUT, LAST_TIE, KEPT, LISTED_HERE = (tl.constexpr(field) for field in range(4))
"""What the filters leave of a row, float64 [R, 4]: ids are kept whose logit is above CUT, or equals it where the id is
at most LAST_TIE; the sum of e^((x - top) / t) over them, or NO_CUT where the row has no filter; and how many entries
the row's list has, -1 where it is not to be used."""
CUT_FIELDS = tl.constexpr(4)
NO_CUT, NOT_FOUND = tl.constexpr(-1.0), tl.constexpr(-2.0)
"""KEPT of rows without filter, and of those that are left to the search of the whole row."""


@triton.jit
def load_chunk(x_row, first, vocabulary, banned_ids, banned, has_banned, SIZE: tl.constexpr):
    """Ids from `first` and their logits, -inf behind the vocabulary and where banned."""
    ids = first + tl.arange(0, SIZE)
    x = tl.load(x_row + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
    if has_banned > 0:
        x = tl.where(is_banned(ids, banned_ids, banned), float("-inf"), x)
    return ids, x


@triton.jit
def _better(
    x, ids, is_kept, at, first, top, t, lift, factor, k0, k, best, token, logit,
    SIZE: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The best of (best, token, logit) and of the ids kept, by exact score; the lowest id on a tie.

    The ids whose bound may beat the best are scored, likeliest first: -log(1 - v) >= v >= h 2^-32, and the bits of a
    float32 are a logarithm never too large. `at` points to the same logits, of ids from `first` on, or, where LISTED,
    to their entries in a list.
    """
    h, _ = hashes(ids, k0, k)
    log_h = h.to(tl.float32).to(tl.int32, bitcast=True).to(tl.float32) * 1.1920928955078125e-07 - 127.0
    bounds = tl.where(is_kept, (x - top) * lift * factor - log_h + (32.0 + ROUNDING), float("-inf"))
    bound = tl.max(bounds, 0)
    while (bound > float("-inf")) & (bound >= best * LOG2_E):
        place = tl.arange(0, SIZE)
        place_of_bound = tl.min(tl.where(bounds == bound, place, SIZE), 0)
        bounds = tl.where(place == place_of_bound, float("-inf"), bounds)
        bound = tl.max(bounds, 0)
        found = tl.load(at + place_of_bound)
        if LISTED:
            value, id = logit_of(found), id_of(found)
        else:
            value, id = found.to(tl.float32), first + place_of_bound
        h_of_id, r_of_id = hashes(id, k0, k)
        score = (value.to(tl.float64) - top.to(tl.float64)) / t + exact_noise(h_of_id, r_of_id)
        is_better = (score > best) | ((score == best) & (id < token))
        best = tl.where(is_better, score, best)
        token = tl.where(is_better, id, token)
        logit = tl.where(is_better, value, logit)
    return best, token, logit


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ROW_POINTERS)
def draw_kernel(
    logits,
    logit_rows,
    temperature,
    seed,
    problem,
    sample,
    position,
    banned_ids,
    chunks_in,
    cuts,
    lists,
    tokens,
    records,
    vocabulary,
    chunks,
    banned,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    FILTERED: tl.constexpr,
):
    """Token and record of row program_id(0). Without FILTERED no row has a filter, and nothing is read of cuts."""
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    is_chunk = chunk < chunks
    found = chunks_in + row.to(tl.int64) * (chunks * FIELDS)
    all_banned = found + BANNED_HERE * chunks
    tops = tl.load(found + TOP * chunks + chunk, mask=is_chunk, other=LOWEST)
    sums = tl.load(found + SUM * chunks + chunk, mask=is_chunk, other=0)
    weighted = tl.load(found + WEIGHTED * chunks + chunk, mask=is_chunk, other=0)
    scaled = tl.load(found + SCALED * chunks + chunk, mask=is_chunk, other=0)
    bounds = tl.load(found + BEST * chunks + chunk, mask=is_chunk, other=float("-inf"))
    row_logits = tl.load(logit_rows + row).to(tl.int64)
    x_row = logits + row_logits * vocabulary
    t = tl.load(temperature + row)
    lift, factor = scale_of(tl.where(t > 0, t, 1.0))

    top = tl.max(tops, 0)
    shift = tl.maximum(tops - top, LOWEST)
    decay = tl.exp2(shift * LOG2_E)
    total = tl.sum((sums * decay).to(tl.float64), 0)
    total_weighted = tl.sum((weighted * decay + shift * decay * sums).to(tl.float64), 0)
    shift = shift * lift * factor
    total_scaled = tl.sum((scaled * tl.exp2(shift)).to(tl.float64), 0)
    kept = total_scaled

    logit = top
    token = tl.where(total == total, NOTHING_FINITE, UNFIT)
    if total > 0:
        if t == 0:
            first = tl.min(tl.where(is_chunk & (tops == top), chunk, CHUNKS), 0)
            has_banned = tl.load(all_banned + first)
            ids, x = load_chunk(x_row, first * CHUNK, vocabulary, banned_ids, banned, has_banned, CHUNK)
            token = tl.min(tl.where(x == top, ids, NO_ID), 0)
        else:
            k0, k = row_keys(seed, problem, sample, position, row)
            exact_t = t.to(tl.float64)
            best = tl.full([], float("-inf"), tl.float64)
            bounds = tl.where(is_chunk, bounds + shift + (32.0 + 0.0861 + ROUNDING), float("-inf"))
            cut, last_tie, listed = tl.full([], float("-inf"), tl.float32), 0, -1
            if FILTERED:
                cut = tl.load(cuts + row * CUT_FIELDS + CUT).to(tl.float32)
                last_tie = tl.load(cuts + row * CUT_FIELDS + LAST_TIE).to(tl.int32)
                listed = tl.load(cuts + row * CUT_FIELDS + LISTED_HERE).to(tl.int32)
                row_kept = tl.load(cuts + row * CUT_FIELDS + KEPT)
                kept = tl.where(row_kept < 0, kept, row_kept)
                bounds = tl.where((tops < cut) | (listed >= 0), float("-inf"), bounds)
                for first in range(0, listed, CHUNK):
                    place = tl.arange(0, CHUNK)
                    at = lists + row.to(tl.int64) * CAPACITY + first
                    entry = tl.load(at + place, mask=place < listed - first, other=NO_ENTRY)
                    x, ids = logit_of(entry), id_of(entry)
                    is_kept = (x > cut) | ((x == cut) & (ids <= last_tie) & (x > float("-inf")))
                    best, token, logit = _better(
                        x, ids, is_kept, at, 0, top, exact_t, lift, factor, k0, k, best, token, logit, CHUNK, True
                    )  # fmt: skip
            bound = tl.max(bounds, 0)
            while (bound > float("-inf")) & (bound >= best * LOG2_E):
                looked_at = tl.min(tl.where(bounds == bound, chunk, CHUNKS), 0)
                bounds = tl.where(chunk == looked_at, float("-inf"), bounds)
                first = looked_at * CHUNK
                has_banned = tl.load(
                    chunks_in + row.to(tl.int64) * (chunks * FIELDS) + BANNED_HERE * chunks + looked_at
                )
                ids, x = load_chunk(x_row, first, vocabulary, banned_ids, banned, has_banned, CHUNK)
                is_kept = (x > cut) | ((x == cut) & (ids <= last_tie) & (x > float("-inf")))
                best, token, logit = _better(
                    x, ids, is_kept, x_row + first, first, top, exact_t, lift, factor, k0, k, best, token, logit,
                    CHUNK, False,
                )  # fmt: skip
                bound = tl.max(bounds, 0)

    tl.store(tokens + row, token)
    d = logit.to(tl.float64) - top.to(tl.float64)
    log_total = tl.log(total)
    is_drawn = (t > 0) & (token >= 0)
    d_scaled = d / tl.where(t > 0, t, 1.0).to(tl.float64)
    # Rounding may leave a certain token a hair above probability one.
    record = records + row * 4
    tl.store(record, tl.minimum(d - log_total, 0.0).to(tl.float32))
    tl.store(record + 1, tl.where(is_drawn, tl.minimum(d_scaled - tl.log(total_scaled), 0.0), 0.0).to(tl.float32))
    tl.store(record + 2, tl.where(is_drawn, tl.minimum(d_scaled - tl.log(kept), 0.0), 0.0).to(tl.float32))
    tl.store(record + 3, tl.maximum(log_total - total_weighted / total, 0.0).to(tl.float32))
