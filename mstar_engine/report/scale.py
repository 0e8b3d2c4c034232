"""Round values along an axis, and values in words: what all plots share.

A share is kept between 0 and 1 in data and shown as a percentage.
"""

from __future__ import annotations

import math


def ticks(low: float, high: float, percent: bool = False, parts: int = 4) -> list[float]:
    """About `parts` + 1 round values whose ends hold `low` and `high`; shares do not leave 0 to 1 without need."""
    inside = percent and low >= 0.0 and high <= 1.0
    if high - low < 1e-9:
        pad = 0.05 if percent else max(abs(high) * 0.5, 0.5)
        low, high = low - pad, high + pad
    if inside:
        low, high = max(low, 0.0), min(high, 1.0)
    raw = (high - low) / parts
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def ticks_within(low: float, high: float, parts: int = 6) -> list[float]:
    """Round values that lie between `low` and `high`."""
    return [tick for tick in ticks(low, high, parts=parts) if low - 1e-9 <= tick <= high + 1e-9]


def whole_ticks(low: float, high: float, most: int = 10) -> list[int]:
    """Whole numbers between `low` and `high`, at most about `most` of them."""
    step = max(1, math.ceil((high - low) / most))
    return list(range(math.ceil(low), math.floor(high) + 1, step))


def show(value: float, percent: bool, exact: bool = False) -> str:
    """A value as a tick says it, or, `exact`, as a reading of the data."""
    value = value or 0.0  # no "-0"
    if percent:
        return f"{100 * value:.1f}%" if exact else f"{round(100 * value, 6):g}%"
    return f"{value:.3g}" if exact else f"{value:g}"


def show_interval(low: float, high: float, percent: bool) -> str:
    """An interval as its two ends."""
    if percent:
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{show(low, False, exact=True)} to {show(high, False, exact=True)}"
