"""Dots with their intervals, one row a measurement: the figure that compares.

Inline for a page, or standalone: an SVG file that carries its own style and follows the reader's light or dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from mstar_engine.report.scale import show, show_interval, ticks
from mstar_engine.types import Estimate

COLOURS = 8
_ROW, _TALL_ROW, _GROUP, _AXIS, _LEGEND, _HEADING = 28, 44, 30, 30, 24, 40
# Below this width a label stands above its row instead of beside it.
_NARROW = 480
_LETTER = 7.4


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One row: a `label`, an Estimate or (mean, low, high), and what else is known.

    Rows of one `group` stand together under its name. `colour` is one of `COLOURS` (by default one for each group);
    `reference` is a value to compare with, shown as a diamond.
    """

    label: str
    value: Estimate | tuple[float, float, float]
    group: str = ""
    colour: int | None = None
    reference: float | None = None

    @property
    def bounds(self) -> tuple[float, float, float]:
        """(mean, low, high)."""
        if isinstance(self.value, Estimate):
            return self.value.value, self.value.low, self.value.high
        return self.value


def interval_plot(
    rows: Sequence[IntervalRow | tuple],
    *,
    label: str,
    percent: bool = True,
    standalone: bool = False,
    width: int = 720,
    reference: str = "reference",
) -> Markup:
    """The rows, from top to bottom, on one axis; tuples are the fields of an IntervalRow in order.

    `label` names the figure; `reference` says what the diamonds are. A `standalone` figure has its label as a heading
    and is a whole SVG file; ValueError without rows. Inline, no rows are said to be none.
    """
    listed = [row if isinstance(row, IntervalRow) else IntervalRow(*row) for row in rows]
    if not listed:
        if standalone:
            raise ValueError(f"interval_plot {label!r}: rows=[]; allowed: 1 row or more")
        return Markup('<p class="quiet">Nothing measured yet.</p>')
    body, height = _draw(listed, percent, width, reference)
    name = escape(label)
    if not standalone:
        return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{body}</svg>')
    style = (Path(__file__).parent / "figure.css").read_text(encoding="utf-8")
    tall = height + _HEADING
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" viewBox="0 0 {width} {tall}" '
        f'role="img" aria-label="{name}"><style>{style}</style><rect class="paper" width="{width}" height="{tall}"/>'
        f'<text class="heading" x="12" y="26">{name}</text><g transform="translate(0,{_HEADING})">{body}</g></svg>\n'
    )


def _draw(rows: list[IntervalRow], percent: bool, width: int, reference: str) -> tuple[str, int]:
    """What is inside the figure, and its height."""
    groups = list(dict.fromkeys(row.group for row in rows))
    narrow = width < _NARROW
    longest = _LETTER * max(len(row.label) for row in rows) + 24
    left = 22 if narrow else round(min(max(longest, 60), 0.42 * width))
    right = 22 if narrow else 150
    seen = [v for row in rows for v in (*row.bounds, row.reference) if v is not None]
    marks = ticks(min(seen), max(seen), percent, parts=4 if narrow else 6)
    low, high = marks[0], marks[-1]

    def at(value: float) -> float:
        return round(left + (value - low) / (high - low) * (width - left - right), 1)

    parts: list[str] = []
    y = 4
    for group in groups:
        if group:
            parts.append(f'<text class="group" x="12" y="{y + 19}">{escape(group)}</text>')
            y += _GROUP
        for row in rows:
            if row.group != group:
                continue
            tall = _TALL_ROW if narrow else _ROW
            middle = y + (30 if narrow else _ROW // 2)
            colour = groups.index(group) if row.colour is None else row.colour
            parts += _row(row, percent, at, middle, f"c{colour % COLOURS}", left, width, narrow)
            y += tall
    grid = [f'<line class="grid" x1="{at(tick)}" x2="{at(tick)}" y1="2" y2="{y + 4}"/>' for tick in marks]
    for tick in marks:
        parts.append(
            f'<text class="tick" x="{at(tick)}" y="{y + 20}" text-anchor="middle">{show(tick, percent)}</text>'
        )
    y += _AXIS
    if any(row.reference is not None for row in rows):
        parts.append(_diamond(left + 6, y + 8, ""))
        parts.append(f'<text class="said" x="{left + 18}" y="{y + 12}">{escape(reference)}</text>')
        y += _LEGEND
    return "".join(grid + parts), y


def _row(
    row: IntervalRow, percent: bool, at: Callable[[float], float], y: int, css: str, left: int, width: int, narrow: bool
) -> list[str]:
    mean, low, high = row.bounds
    reading = f"{show(mean, percent, exact=True)} ({show_interval(low, high, percent)})"
    room = int((width - 150 if narrow else left - 20) / _LETTER)
    text = row.label if len(row.label) <= room else row.label[: max(1, room - 1)] + "…"
    x, anchor, above = (12, "start", y - 14) if narrow else (left - 12, "end", y + 4)
    full = f"<title>{escape(row.label)}: {escape(reading)}</title>"
    parts = [
        f'<text class="label" x="{x}" y="{above}" text-anchor="{anchor}">{escape(text)}{full}</text>',
        f'<line class="whisker {css}" x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}"/>',
        f'<circle class="dot {css}" cx="{at(mean)}" cy="{y}" r="5">{full}</circle>',
    ]
    if row.reference is not None:
        parts.append(_diamond(at(row.reference), y, show(row.reference, percent, exact=True)))
    parts.append(
        f'<text class="said" x="{width - 12}" y="{above}" text-anchor="end"><tspan class="end {css}">'
        f"{show(mean, percent, exact=True)}</tspan> {show_interval(low, high, percent)}</text>"
    )
    return parts


def _diamond(x: float, y: float, said: str) -> str:
    title = f"<title>{escape(said)}</title>" if said else ""
    return f'<path class="reference" d="M{x} {y - 5}l5 5l-5 5l-5 -5z">{title}</path>'
