"""What the Triton kernels over logits share: keys, hashes and noise of a draw, order-preserving keys, banned ids.

The noise is that of `reference.gumbel_noise`. Integers wrap as unsigned, and `exact_noise` equals the reference's up to
the last places of a logarithm.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The least finite float32."""
NO_ID = tl.constexpr(0x7FFFFFFF)

RUNTIME = ("chunks", "banned")
ROW_POINTERS = ("logit_rows", "temperature", "top_k", "top_p", "min_p", "seed", "problem", "sample", "position")
"""Arguments whose values and alignment make no other kernels: a batch of another size compiles nothing."""


@triton.jit
def _splitmix64(z):
    z += 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def row_keys(seed, problem, sample, position, row):
    """k0 and k = k1 ^ (k1 >> 13), where k0 and k1 are the halves of draw `row`'s key, low first.

    The other arguments are pointers to the addresses. The hash takes k1 in two places, which k makes one.
    """
    key = _splitmix64(tl.load(seed + row).to(tl.uint64))
    key = _splitmix64(key ^ tl.load(problem + row).to(tl.uint64))
    key = _splitmix64(key ^ tl.load(sample + row).to(tl.int64).to(tl.uint64))
    key = _splitmix64(key ^ tl.load(position + row).to(tl.int64).to(tl.uint64))
    return key.to(tl.uint32), ((key >> 32) ^ (key >> 45)).to(tl.uint32)


@triton.jit
def unfinished_hash(x, k):
    """The hash of a token id before its last step, h = x ^ (x >> 16), where x was id * 0x9E3779B1 + k0 modulo 2^32.

    It equals h below 2^16 and is within a factor of 1 +- 2^-16 of it above.
    """
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    return (x ^ (x >> 13) ^ k) * 0xC2B2AE35


@triton.jit
def hashes(ids, k0, k):
    """Both hashes of token ids, h and r: the noise is that of v = (h + (r + 0.5) 2^-32) 2^-32."""
    first = ids.to(tl.uint32) * 0x9E3779B1
    h = unfinished_hash(first + k0, k)
    r = unfinished_hash(first + (k0 ^ 0x68E31DA4), k ^ 0xB52CD306)
    return h ^ (h >> 16), r ^ (r >> 16)


@triton.jit
def exact_noise(h, r):
    """Gumbel noise -log(-log(1 - v)) in nats, float64, of v rounded as the reference rounds it: neither tail is cut."""
    v = (h.to(tl.float64) + (r.to(tl.float64) + 0.5) * 2.3283064365386963e-10) * 2.3283064365386963e-10
    rest = 1.0 - v
    # log(1 + x) = log(w) x / (w - 1), w being 1 + x rounded: the two roundings cancel.
    exponential = tl.where(rest == 1.0, v, -tl.log(rest) * v / (1.0 - rest))
    return -tl.log(exponential)


@triton.jit
def scale_of(t):
    """Two float32 factors whose product is log2(e) / t; the first is 1 unless t is tiny. Any positive t is exact."""
    lift = tl.where(t < 1.2621774483536189e-29, 7.922816251426434e28, 1.0)  # 2^-96, 2^96
    return lift, tl.div_rn(1.4426950408889634, t * lift)


@triton.jit
def key_of(x, SHIFT: tl.constexpr):
    """int32 key of a float32 in the order of floats; SHIFT low bits are left out, which values of the type lack."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def value_of(key, SHIFT: tl.constexpr):
    """The float32 of a key."""
    bits = (key << SHIFT) | tl.where(key < 0, (1 << SHIFT) - 1, 0)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def holds_banned(banned_ids, banned, begin, end, BANNED: tl.constexpr):
    """1 where one of the `banned` ids is in [begin, end), else 0."""
    inside = tl.zeros([BANNED], tl.int32)
    for first in range(0, banned, BANNED):
        place = first + tl.arange(0, BANNED)
        ids = tl.load(banned_ids + place, mask=place < banned, other=-1)
        inside |= ((ids >= begin) & (ids < end)).to(tl.int32)
    return tl.max(inside, 0)


@triton.jit
def is_banned(ids, banned_ids, banned):
    """Which ids are in the ascending list of `banned` ids: a binary search each."""
    below = tl.zeros_like(ids)  # so many of the list are known to be at most the id
    step = 1
    while step * 2 <= banned:
        step *= 2
    while step > 0:
        probe = below + step
        fits = probe <= banned
        value = tl.load(banned_ids + probe - 1, mask=fits, other=0)
        below = tl.where(fits & (value <= ids), probe, below)
        step //= 2
    return (below > 0) & (tl.load(banned_ids + below - 1, mask=below > 0, other=-1) == ids)
