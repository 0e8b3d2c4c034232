"""How the sampling temperature was chosen: its course, and every sweep with the curve it was read from.

A run with one temperature has nothing to show here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mstar_engine.report.metrics import metric_of
from mstar_engine.report.plot import Mark, Point, Series, both_widths, line_plot
from mstar_engine.summary import IterationSummary, SweepSummary

_BALANCE = "balance"
WIDTH, HEIGHT = 300, 216


@dataclass(frozen=True, slots=True)
class ShownSweep:
    """A sweep before an iteration: what it found, in a plot; `weak` arms have fewer items than the others."""

    iteration: int
    controller: str
    chosen: float
    present: float
    drawn: int
    seconds: float
    weak: int
    plot: Markup


def temperature_plot(rows: Sequence[IterationSummary]) -> Markup | None:
    """Temperature by iteration, iterations without a sweep drawn weaker; None when it never moved or was chosen."""
    swept = any(row.sweep for row in rows)
    if not swept and len({row.temperature for row in rows}) < 2:
        return None
    points = [Point(row.iteration, row.temperature, weak=swept and row.sweep is None) for row in rows]
    series = [Series("temperature", "second", points)]
    label = "Temperature by iteration"
    return both_widths(
        lambda width, height: line_plot(series, label=label, percent=False, width=width, height=height, ends="none"),
        height=210,
    )


def shown_sweeps(rows: Sequence[IterationSummary]) -> list[ShownSweep]:
    """The sweeps in order, all on one scale of the metric."""
    swept = [(row.iteration, row.sweep) for row in rows if row.sweep and row.sweep.values]
    values = [bound for _, sweep in swept for e in sweep.values for bound in (e.low, e.high)]
    bounds = (min(values), max(values)) if len({sweep.metric for _, sweep in swept}) == 1 else None
    return [
        ShownSweep(
            iteration=iteration,
            controller=sweep.controller,
            chosen=sweep.chosen,
            present=sweep.present,
            drawn=sweep.drawn,
            seconds=sweep.seconds,
            weak=sum(e.items < max(e.items for e in sweep.values) for e in sweep.values),
            plot=_plot(sweep, bounds),
        )
        for iteration, sweep in swept
    ]


def sweep_metric(sweep: SweepSummary) -> str:
    """What a sweep compares temperatures by, in words."""
    return "balance score" if sweep.metric == _BALANCE else metric_of(sweep.metric, sweep.k, sweep.k).title


def _plot(sweep: SweepSummary, bounds: tuple[float, float] | None) -> Markup:
    most = max(e.items for e in sweep.values)
    arms = [
        Point(t, e.value, e.low, e.high, weak=e.items < most)
        for t, e in sorted(zip(sweep.temperatures, sweep.values, strict=False), key=lambda pair: pair[0])
    ]
    series = [Series(sweep_metric(sweep), "first", arms, "dots")]
    if sweep.model is not None:
        model = sweep.model
        curve = [Point(*p) for p in zip(model.temperatures, model.mean, model.low, model.high, strict=False)]
        series.insert(0, Series("model", "second", curve, "curve"))
    marks = [Mark(sweep.chosen, f"chosen {sweep.chosen:g}", strong=True)]
    if sweep.present == sweep.chosen:
        marks = [Mark(sweep.chosen, f"stays at {sweep.chosen:g}", strong=True)]
    else:
        marks.append(Mark(sweep.present, f"before {sweep.present:g}"))
    return line_plot(
        series,
        label=f"{sweep_metric(sweep)} by temperature; {marks[0].label}",
        percent=metric_of(sweep.metric, sweep.k, sweep.k).percent,
        width=WIDTH,
        height=HEIGHT,
        axis="temperature",
        marks=marks,
        ends="none",
        bounds=bounds,
    )
