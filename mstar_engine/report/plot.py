"""Line plots against the iteration, as inline SVG: no script, colours by CSS class, a 95% band behind each line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LEFT, RIGHT, TOP, BOTTOM = 46, 78, 20, 40
# The widest that a letter of a label becomes, on a narrow screen, where labels are set larger.
_LETTER = 8.8


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; `low` and `high` bound its band (None: no band)."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, its CSS class and its points in order of x."""

    label: str
    css: str
    points: Sequence[Point]


def line_plot(series: Sequence[Series], *, label: str, percent: bool, width: int = 720, height: int = 280) -> Markup:
    """The series in one frame; `percent` shows values as percentages and keeps the axis within 0 and 1."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup('<p class="quiet">Nothing measured yet.</p>')
    xs = [point.x for one in drawn for point in one.points]
    bounds = [v for one in drawn for p in one.points for v in (p.y, p.low, p.high) if v is not None]
    ticks = _ticks(min(bounds), max(bounds), percent)
    right = max(RIGHT, 10 + math.ceil(_LETTER * max(len(one.label) for one in drawn)))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - right)
        down = height - BOTTOM - (y - y_low) / (y_high - y_low) * (height - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{_show(tick, percent)}</text>')
    for tick in _whole_ticks(x_low, max(xs)):
        x, _ = at(tick, y_low)
        parts.append(f'<text class="tick" x="{x}" y="{height - BOTTOM + 18}" text-anchor="middle">{tick}</text>')
    parts.append(
        f'<text class="tick" x="{(LEFT + width - right) / 2}" y="{height - 6}" text-anchor="middle">iteration</text>'
    )
    for one in drawn:
        parts += _band(one, at)
        path = " ".join("{},{}".format(*at(p.x, p.y)) for p in one.points)
        parts.append(f'<polyline class="line {escape(one.css)}" points="{path}"/>')
        for p in one.points:
            x, y = at(p.x, p.y)
            parts.append(f'<circle class="dot {escape(one.css)}" cx="{x}" cy="{y}" r="3">')
            parts.append(f"<title>{escape(_tooltip(one, p, percent))}</title></circle>")
    for one, y in _apart([(one, at(one.points[-1].x, one.points[-1].y)[1]) for one in drawn], height - BOTTOM):
        x, _ = at(one.points[-1].x, y_low)
        parts.append(f'<text class="end {escape(one.css)}" x="{x + 10}" y="{y - 2}">{escape(one.label)}</text>')
        value = _show(one.points[-1].y, percent, exact=True)
        parts.append(f'<text class="end value {escape(one.css)}" x="{x + 10}" y="{y + 13}">{value}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def _band(one: Series, at: Callable[[float, float], tuple[float, float]]) -> list[str]:
    points = [p for p in one.points if p.low is not None and p.high is not None]
    if len(points) < 2:
        line = '<line class="bar {}" x1="{}" y1="{}" x2="{}" y2="{}"/>'
        return [line.format(escape(one.css), *at(p.x, p.low), *at(p.x, p.high)) for p in points]
    outline = [at(p.x, p.high) for p in points] + [at(p.x, p.low) for p in reversed(points)]
    return [f'<polygon class="band {escape(one.css)}" points="{" ".join(f"{x},{y}" for x, y in outline)}"/>']


def _apart(labels: list[tuple[Series, float]], floor: float, gap: float = 34.0) -> list[tuple[Series, float]]:
    """Labels pushed down until none covers another, then up again from below `floor`."""
    ordered = sorted(labels, key=lambda item: item[1])
    heights = [y for _, y in ordered]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], floor - gap * (len(heights) - 1 - index))
    return [(one, y) for (one, _), y in zip(ordered, heights, strict=True)]


def _tooltip(one: Series, p: Point, percent: bool) -> str:
    text = f"{one.label}, iteration {p.x:g}: {_show(p.y, percent, exact=True)}"
    if p.low is not None and p.high is not None:
        text += f" ({_show(p.low, percent, exact=True)} to {_show(p.high, percent, exact=True)})"
    return text


def _show(value: float, percent: bool, exact: bool = False) -> str:
    if percent:
        return f"{100 * value:.1f}%" if exact else f"{100 * value:g}%"
    return f"{value:.3g}" if exact else f"{value:g}"


def _ticks(low: float, high: float, percent: bool) -> list[float]:
    """About five round values whose ends hold `low` and `high`."""
    if high - low < 1e-9:
        pad = 0.05 if percent else max(abs(high) * 0.5, 0.5)
        low, high = low - pad, high + pad
    if percent:
        low, high = max(low, 0.0), min(high, 1.0)
    raw = (high - low) / 4
    scale = 10 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 10))
    return list(range(math.ceil(low), math.floor(high) + 1, step))
