"""Line plots as inline SVG: no script, colours by CSS class, a 95% band behind each line.

Against the iteration unless told otherwise: `axis` names another, with marks across or down where a value matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from mstar_engine.report.scale import show, show_interval, ticks, ticks_within, whole_ticks

ITERATION = "iteration"
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 20, 40
# The widest that a letter of a label becomes.
_LETTER = 8.8
# A row of labels above the frame.
_LABEL = 16


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; `low` and `high` bound its band (None: no band). A `weak` one is shown as less sure."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of x, with a name and a CSS class.

    `shape` "line" joins the points in a band, "dots" gives each its interval, "curve" is a line and a band alone.
    Without its `band`, a line's intervals are only told.
    """

    label: str
    css: str
    points: Sequence[Point]
    shape: Literal["line", "dots", "curve"] = "line"
    band: bool = True

    @property
    def extent(self) -> list[float]:
        """Every y that is drawn."""
        if not self.band:
            return [p.y for p in self.points]
        return [y for p in self.points for y in (p.y, p.low, p.high) if y is not None]


@dataclass(frozen=True, slots=True)
class Mark:
    """A line through the frame at `at`: down it at an x, or `across` it at a y; a `strong` one is drawn through."""

    at: float
    label: str = ""
    across: bool = False
    strong: bool = False


def both_widths(draw: Callable[[int, int], Markup], height: int = 320) -> Markup:
    """What `draw(width, height)` gives for a wide page and for a narrow one; the page's style shows one of the two."""
    wide, narrow = draw(920, height), draw(380, min(height, 260))
    return Markup('<div class="at-wide">{}</div><div class="at-narrow">{}</div>').format(wide, narrow)


def line_plot(
    series: Sequence[Series],
    *,
    label: str,
    percent: bool,
    width: int = 720,
    height: int = 280,
    axis: str = ITERATION,
    marks: Sequence[Mark] = (),
    ends: Literal["value", "name", "none"] = "value",
    bounds: tuple[float, float] | None = None,
) -> Markup:
    """The series in one frame; `percent` shows values as percentages.

    `ends` says what stands behind the last point of a line: its name and value, its name, or nothing. `bounds` is a
    range of y to hold besides the data, so that plots side by side can share a scale.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup('<p class="quiet">Nothing measured yet.</p>')
    down = [mark for mark in marks if not mark.across]
    xs = [point.x for one in drawn for point in one.points] + [mark.at for mark in down]
    ys = [y for one in drawn for y in one.extent]
    ys += [mark.at for mark in marks if mark.across] + list(bounds or ())
    y_ticks = ticks(min(ys), max(ys), percent)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    x_low, x_high = min(xs), max(xs)
    if axis == ITERATION:
        x_ticks: Sequence[float] = whole_ticks(x_low, x_high, 10 if width > 480 else 5)
        x_high = max(x_high, x_low + 1)
    else:
        pad = 0.04 * (x_high - x_low) or 0.5
        x_low, x_high = x_low - pad, x_high + pad
        x_ticks = ticks_within(x_low, x_high)
    said = [one for one in drawn if one.shape == "line"] if ends != "none" else []
    right = max([RIGHT, *(10 + math.ceil(_LETTER * len(one.label)) for one in said)])
    if ends == "value" and said:
        right = max(right, 78)
    top = max(TOP, 8 + _LABEL * sum(bool(mark.label) for mark in down))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - right)
        below = height - BOTTOM - (y - y_low) / (y_high - y_low) * (height - top - BOTTOM)
        return round(across, 1), round(below, 1)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{show(tick, percent)}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        parts.append(f'<text class="tick" x="{x}" y="{height - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + width - right) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(axis)}</text>')
    for one in drawn:
        if one.shape != "dots" and one.band:
            parts += _band(one, at)
    parts += _marks(marks, at, (LEFT, width - right), (top, height - BOTTOM))
    for one in drawn:
        parts += _series(one, at, percent, axis)
    parts += _ends(said, at, percent, ends == "value", height - BOTTOM)
    parts.append("</svg>")
    return Markup("".join(parts))


At = Callable[[float, float], tuple[float, float]]


def _series(one: Series, at: At, percent: bool, axis: str) -> list[str]:
    css, parts = escape(one.css), []
    if one.shape != "dots" and len(one.points) > 1:
        path = " ".join("{},{}".format(*at(p.x, p.y)) for p in one.points)
        parts.append(f'<polyline class="line {css}" points="{path}"/>')
    if one.shape == "curve":
        return parts
    for p in one.points:
        weak = " weak" if p.weak else ""
        if one.shape == "dots" and p.low is not None and p.high is not None:
            (x, low), (_, high) = at(p.x, p.low), at(p.x, p.high)
            parts.append(f'<line class="whisker {css}{weak}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
        x, y = at(p.x, p.y)
        size = 4 if one.shape == "dots" and not p.weak else 3
        parts.append(f'<circle class="dot {css}{weak}" cx="{x}" cy="{y}" r="{size}">')
        parts.append(f"<title>{escape(_tooltip(one, p, percent, axis))}</title></circle>")
    return parts


def _ends(said: Sequence[Series], at: At, percent: bool, valued: bool, floor: float) -> list[str]:
    """The names behind the last points, with the values where `valued`."""
    placed = [(one, *at(one.points[-1].x, one.points[-1].y)) for one in said]
    # Names alone are short: only lines that end together are in each other's way.
    columns = [placed] if valued else [[one for one in placed if one[1] == x] for x in {x for _, x, _ in placed}]
    parts = []
    for column in columns:
        for (one, x, _), y in _apart(column, floor, 34.0 if valued else 15.0):
            css = escape(one.css)
            up = -2 if valued else 4
            parts.append(f'<text class="end {css}" x="{x + 10}" y="{y + up}">{escape(one.label)}</text>')
            if valued:
                value = show(one.points[-1].y, percent, exact=True)
                parts.append(f'<text class="end value {css}" x="{x + 10}" y="{y + 13}">{value}</text>')
    return parts


def _band(one: Series, at: At) -> list[str]:
    points = [p for p in one.points if p.low is not None and p.high is not None]
    css = escape(one.css)
    if len(points) < 2:
        line = '<line class="whisker {}" x1="{}" y1="{}" x2="{}" y2="{}"/>'
        return [line.format(css, *at(p.x, p.low), *at(p.x, p.high)) for p in points]
    outline = [at(p.x, p.high) for p in points] + [at(p.x, p.low) for p in reversed(points)]
    return [f'<polygon class="band {css}" points="{" ".join(f"{x},{y}" for x, y in outline)}"/>']


def _marks(marks: Sequence[Mark], at: At, across: tuple[float, float], down: tuple[float, float]) -> list[str]:
    """The marks; labels of those that go down the frame each have a row of their own above it."""
    parts, row = [], 0
    for mark in marks:
        css = "mark strong" if mark.strong else "mark"
        strong = " strong" if mark.strong else ""
        if mark.across:
            y = at(0.0, mark.at)[1]
            parts.append(f'<line class="{css}" x1="{across[0]}" x2="{across[1]}" y1="{y}" y2="{y}"/>')
            if mark.label:
                parts.append(
                    f'<text class="said{strong}" x="{across[1]}" y="{y - 5}" text-anchor="end">'
                    f"{escape(mark.label)}</text>"
                )
            continue
        x = at(mark.at, 0.0)[0]
        parts.append(f'<line class="{css}" x1="{x}" x2="{x}" y1="{down[0]}" y2="{down[1]}"/>')
        if mark.label:
            anchor = "start" if x < (across[0] + across[1]) / 2 else "end"
            above = down[0] - 6 - _LABEL * row
            parts.append(
                f'<text class="said{strong}" x="{x}" y="{above}" text-anchor="{anchor}">{escape(mark.label)}</text>'
            )
            row += 1
    return parts


Placed = tuple[Series, float, float]


def _apart(labels: list[Placed], floor: float, gap: float) -> list[tuple[Placed, float]]:
    """Labels pushed down until none covers another, then up again from below `floor`."""
    ordered = sorted(labels, key=lambda item: item[2])
    heights = [y for _, _, y in ordered]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], floor - gap * (len(heights) - 1 - index))
    return list(zip(ordered, heights, strict=True))


def _tooltip(one: Series, p: Point, percent: bool, axis: str) -> str:
    text = f"{one.label}, {axis} {p.x:g}: {show(p.y, percent, exact=True)}"
    if p.low is not None and p.high is not None:
        text += f" ({show_interval(p.low, p.high, percent)})"
    return text
