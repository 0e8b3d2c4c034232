"""Several runs on one page: where they ended, how they got there, and in what they were told apart.

Every run has a number and a colour; the same two stand for it in every figure. Unfinished runs are shown as far as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mstar_engine.config_parse import flat_config
from mstar_engine.durable import replace_text
from mstar_engine.report.intervals import COLOURS, IntervalRow, interval_plot
from mstar_engine.report.page import render
from mstar_engine.report.plot import Point, Series, both_widths, line_plot
from mstar_engine.report.run_files import read_run
from mstar_engine.summary import Summary
from mstar_engine.types import Estimate

ABSENT = "(absent)"
# With more lines than this in a figure, their bands would hide each other.
_BANDS = 4
_DOTS_NARROW = 360


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run with its `number`, from 1, its colour class and the name that tells it from the others."""

    number: int
    css: str
    name: str
    path: str
    summary: Summary
    iterations: int

    @property
    def status(self) -> str:
        """Finished, or how far it is."""
        done = len(self.summary.evolve)
        if self.summary.final:
            return "finished"
        planned = f" of {self.iterations}" if self.iterations > 0 else ""
        return f"unfinished: {done}{planned} iteration{'' if done == 1 and not planned else 's'}"

    @property
    def sampled(self) -> int:
        """Responses sampled in all."""
        return sum(row.sampled for row in self.summary.evolve)

    @property
    def kept(self) -> int:
        """Responses kept in all."""
        return sum(row.kept for row in self.summary.evolve)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all stages."""
        return sum(self.summary.seconds.values())


@dataclass(frozen=True, slots=True)
class Difference:
    """A configuration key in which the runs differ: each value in words, and the runs that have it."""

    key: str
    values: tuple[tuple[str, tuple[ComparedRun, ...]], ...]


def write_comparison(runs: Sequence[Path], path: Path) -> Path:
    """Write the comparison of the run directories `runs` to the file `path`, in one step; returns it."""
    text = build_comparison(runs)
    replace_text(path, text)
    return path


def build_comparison(runs: Sequence[Path]) -> str:
    """The comparison of run directories as HTML. ValueError names one that is none."""
    files = [read_run(run) for run in runs]
    names = distinct_names([one.path for one in files])
    compared = [
        ComparedRun(
            index + 1,
            f"c{index % COLOURS}",
            name,
            str(one.path),
            one.summary,
            one.config["evolve"].get("iterations", len(one.summary.evolve)),
        )
        for index, (one, name) in enumerate(zip(files, names, strict=True))
    ]
    ks, reward_ks = sorted({one.k for one in files}), sorted({one.reward_k for one in files})
    return render(
        "compare.html.jinja",
        runs=compared,
        final=_finals(compared),
        curves=_curves(compared, _either(ks), _either(reward_ks)),
        differences=differences(compared, [one.config for one in files]),
        bands=len(compared) <= _BANDS,
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The folder names, led by as many parents as it takes to tell the runs apart."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        length = next((n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1), 1)
        names.append("/".join(own[-length:]))
    return names


def differences(runs: Sequence[ComparedRun], configs: Sequence[dict[str, Any]]) -> list[Difference]:
    """The keys in which the runs differ, except where they wrote, in the order of the configuration."""
    flat = [flat_config(config) for config in configs]
    found = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values: dict[str, list[ComparedRun]] = {}
        for run, one in zip(runs, flat, strict=True):
            values.setdefault(_words(one[key]) if key in one else ABSENT, []).append(run)
        if key != "output_dir" and len(values) > 1:
            found.append(Difference(key, tuple((value, tuple(having)) for value, having in values.items())))
    return found


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return repr(value) if isinstance(value, str) and value.strip() != value else str(value)


def _either(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else "K"


def _finals(runs: Sequence[ComparedRun]) -> list[tuple[str, Markup]]:
    """A title and a figure for the test problems, and for those out of distribution where measured."""
    found = []
    for title, field in (("Test problems", "greedy"), ("Out of distribution", "ood_greedy")):
        rows = []
        for run in runs:
            value = getattr(run.summary.final, field) if run.summary.final else None
            before = getattr(run.summary.warmup, field) if run.summary.warmup else None
            if value is not None:
                reference = before.value if before is not None else None
                rows.append(IntervalRow(f"{run.number}  {run.name}", value, "", run.number - 1, reference))
        if rows or field == "greedy":
            found.append((title, _at_both_widths(rows, f"{title}: final greedy accuracy by run")))
    return found


def _at_both_widths(rows: list[IntervalRow], label: str) -> Markup:
    def draw(width: int) -> Markup:
        return interval_plot(rows, label=label, width=width, reference="after warm-up")

    return Markup('<div class="at-wide">{}</div><div class="at-narrow">{}</div>').format(draw(920), draw(_DOTS_NARROW))


def _curves(runs: Sequence[ComparedRun], k: str, reward_k: str) -> list[tuple[str, str, Markup]]:
    """A title, an explanation and a figure for each metric that some run has."""
    metrics = (
        ("Greedy", "The likeliest response is right.", "validation_greedy", "greedy"),
        (f"Pass@{k}", f"At least one of {k} samples is right.", "pass_at_k", "pass_at_k"),
        (
            f"Reward-Pass@{reward_k}",
            f"At least one of the {reward_k} samples that the process reward model scores best is right.",
            "reward_pass_at_2",
            "reward_pass_at_2",
        ),
    )
    found = []
    for title, says, start, field in metrics:
        series = [_series(run, start, field, len(runs) <= _BANDS) for run in runs]
        if any(one.points for one in series):
            found.append((title, says, both_widths(_drawing(series, f"{title} by iteration and run"), height=340)))
    return found


def _drawing(series: list[Series], label: str) -> Callable[[int, int], Markup]:
    return lambda width, height: line_plot(series, label=label, percent=True, width=width, height=height, ends="name")


def _series(run: ComparedRun, start: str, field: str, bands: bool) -> Series:
    warmup = run.summary.warmup
    pairs: list[tuple[int, Estimate | None]] = [(0, getattr(warmup, start))] if warmup else []
    pairs += [(row.iteration, getattr(row, field)) for row in run.summary.evolve]
    points = [Point(x, e.value, e.low, e.high) for x, e in pairs if e is not None]
    return Series(str(run.number), run.css, points, band=bands)
