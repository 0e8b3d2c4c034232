"""95% intervals over problems: Wilson's for shares of right-or-wrong outcomes, the percentile bootstrap for means.

Problems are the unit: the samples of a problem stay together, as they share its difficulty. An interval always holds
its value. The bootstrap is seeded, so that the same outcomes always have the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mstar_engine.types import Estimate

RESAMPLES = 2000
_Z = 1.959963984540054


def wilson(successes: int, items: int) -> Estimate:
    """A share of 0/1 outcomes with Wilson's 95% interval (JASA 22, 1927)."""
    if items < 1 or not 0 <= successes <= items:
        raise ValueError(f"successes={successes} of items={items}; allowed: 1 item or more, and successes among them")
    share, z2 = successes / items, _Z * _Z
    middle = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = _Z / (1 + z2 / items) * math.sqrt(share * (1 - share) / items + z2 / (4 * items * items))
    # Rounding must not push the interval off the share at 0 and 1.
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Estimate(value=share, items=items, low=low, high=high)


def bootstrap(
    values: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean of `values`, one a problem, with the 95% percentile bootstrap interval over problems.

    `bounds` are the least and the greatest value that a problem can have, None where there are none. They matter when
    all values are equal: resampling then sees no spread at all. Up to the share q of problems that Wilson's interval
    still allows to be of another kind could lie at either bound, and the interval says so; for 0s or 1s it is Wilson's.
    Without bounds it has no width. The order of the values doesn't matter.
    """
    array = _finite(values, "values")
    items = len(array)
    distinct, counts = np.unique(array, return_counts=True)
    least, greatest = bounds or (-math.inf, math.inf)
    if not least <= distinct[0] <= distinct[-1] <= greatest:
        raise ValueError(f"values from {distinct[0]:g} to {distinct[-1]:g}; allowed: {least:g} to {greatest:g}")
    if len(distinct) == 1:
        value = float(distinct[0])
        q = wilson(0, items).high
        low, high = (value, value) if bounds is None else (value - q * (value - least), value + q * (greatest - value))
        return Estimate(value=value, items=items, low=low, high=high)
    # Drawing problems with replacement is a multinomial draw over their distinct values.
    draws = np.random.default_rng(seed).multinomial(items, counts / items, size=resamples)
    return _percentiles(float(distinct @ counts / items), items, draws @ distinct / items)


def bootstrap_ratio(
    totals: Sequence[float], sizes: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """sum(totals) / sum(sizes), both one a problem, with the 95% percentile bootstrap interval over problems.

    The ratio estimator of a mean a token or a response: a problem weighs as much as its `sizes` (above 0). The draws go
    by position, so that a last bit of a total moves the interval by a last bit: give problems in a fixed order.
    """
    top, bottom = _finite(totals, "totals"), _finite(sizes, "sizes")
    if len(top) != len(bottom):
        raise ValueError(f"{len(top)} totals, {len(bottom)} sizes; allowed: as many")
    if not (bottom > 0).all():
        raise ValueError(f"sizes[{int(np.argmin(bottom))}]={bottom.min():g}; allowed: above 0")
    items, rng, ratios = len(top), np.random.default_rng(seed), np.empty(resamples)
    for index in range(resamples):  # one at a time: memory stays that of the values
        drawn = rng.integers(items, size=items)
        ratios[index] = top[drawn].sum() / bottom[drawn].sum()
    return _percentiles(float(top.sum() / bottom.sum()), items, ratios)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each weighing the same, with its 95% interval from theirs; `items` in all.

    How far the mean may lie off on a side is the root of the sum of squares of what each contributes to that side (Zou
    and Donner, Statistics in Medicine 27, 2008), so that skewed intervals, and those at 0 and 1, keep their meaning.
    """
    count = len(estimates)
    if not count:
        raise ValueError("no estimates to average")
    value = math.fsum(one.value for one in estimates) / count
    below = math.sqrt(math.fsum((one.value - one.low) ** 2 for one in estimates)) / count
    above = math.sqrt(math.fsum((one.high - one.value) ** 2 for one in estimates)) / count
    return Estimate(value=value, items=sum(one.items for one in estimates), low=value - below, high=value + above)


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not len(array):
        raise ValueError(f"no {name} to average")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}]={array[bad[0]]}; allowed: finite numbers")
    return array


def _percentiles(value: float, items: int, means: np.ndarray) -> Estimate:
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=value, items=items, low=min(float(low), value), high=max(float(high), value))
