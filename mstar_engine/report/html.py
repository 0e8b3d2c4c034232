"""The report of a run: one HTML file that opens anywhere, offline, and explains itself.

It reads only what the run wrote (config.yaml, summary.json, journal.jsonl, rollouts/, report_images/), and works on
an unfinished run too. Everything is inline; the page's own policy forbids scripts and the network, and every text from
data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

import mstar_engine
from mstar_engine.config import RunConfig
from mstar_engine.config_parse import flat_config, merge
from mstar_engine.durable import replace_text
from mstar_engine.journal import read_events
from mstar_engine.report.plot import Point, Series, line_plot
from mstar_engine.report.samples import read_samples
from mstar_engine.report.steps import BANDS
from mstar_engine.report.verifier import verifier_table
from mstar_engine.report.words import kept_responses, lesson, stage_name
from mstar_engine.summary import IterationSummary, Summary, read_summary
from mstar_engine.types import Estimate
from mstar_engine.yaml_text import parse_yaml, write_yaml

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Headline:
    """An accuracy before and after the evolution."""

    label: str
    before: Estimate | None
    after: Estimate

    @property
    def clear(self) -> bool:
        """Whether the two intervals lie apart."""
        return self.before is not None and (self.after.low > self.before.high or self.after.high < self.before.low)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run directory `run`, in one step, and return its path."""
    path = run / "report.html"
    replace_text(path, build_report(run))
    return path


def build_report(run: Path) -> str:
    """The report of the run directory `run` as HTML. ValueError when `run` is no run directory."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: no run directory (no config.yaml in it)")
    written = parse_yaml((run / "config.yaml").read_text(encoding="utf-8"), str(run / "config.yaml"))
    # Laid over the defaults and not checked: a run of another version still has its report.
    mapping = merge(asdict(RunConfig()), written)
    summary = read_summary(run / "summary.json") if (run / "summary.json").is_file() else Summary()
    events = read_events(run / "journal.jsonl")
    k = mapping["evaluate"]["pass_at_k"]
    steps = mapping["steps"]
    samples = read_samples(run, delimiter=steps.get("delimiter", "\n\n"), max_steps=steps.get("max_steps", 0))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "share": _share,
        "points": _points,
        "duration": _duration,
        "number": _number,
        "score": _score,
    }
    return environment.get_template("report.html.jinja").render(
        css=(_HERE / "report.css").read_text(encoding="utf-8"),
        name=run.resolve().name,
        version=mstar_engine.__version__,
        when=_when(events),
        config=mapping,
        changed=_changed(mapping),
        config_text=write_yaml(mapping),
        kept=kept_responses(mapping["select"]),
        summary=summary,
        headlines=_headlines(summary),
        totals=_totals(summary.evolve),
        stages=_stages(summary.seconds),
        accuracy_plot=_accuracy_plot(summary, f"Pass@{k}"),
        kept_plot=_kept_plot(summary.evolve),
        temperature_plot=_temperature_plot(summary.evolve),
        k=k,
        lesson=lesson(summary.prm.annotation.mode) if summary.prm else "",
        verifier=verifier_table(summary),
        reward_pass=any(point for _, point in _reward_pass(summary)),
        samples=samples,
        scored=any(response.steps for problem in samples for response in problem.responses),
        bands=range(BANDS),
    )


def _headlines(summary: Summary) -> list[Headline]:
    if summary.final is None:
        return []
    before = summary.warmup
    found = [Headline("Test problems", before and before.greedy, summary.final.greedy)]
    if summary.final.ood_greedy is not None:
        found.append(Headline("Out of distribution", before and before.ood_greedy, summary.final.ood_greedy))
    return found


def _estimates(pairs: Iterable[tuple[int, Estimate | None]]) -> list[Point]:
    return [Point(x, e.value, e.low, e.high) for x, e in pairs if e is not None]


def _accuracy_plot(summary: Summary, pass_label: str) -> str:
    start, rows = summary.warmup, summary.evolve
    greedy = [(0, start.validation_greedy)] if start else []
    passed = [(0, start.pass_at_k)] if start else []
    series = [
        Series(pass_label, "second", _estimates(passed + [(row.iteration, row.pass_at_k) for row in rows])),
        Series("Reward-Pass@2", "third", _estimates(_reward_pass(summary))),
        Series("greedy", "first", _estimates(greedy + [(row.iteration, row.greedy) for row in rows])),
    ]
    names = ", ".join(one.label for one in series if one.points)
    return line_plot(series, label=f"Accuracy by iteration: {names}", percent=True)


def _reward_pass(summary: Summary) -> list[tuple[int, Estimate | None]]:
    start = [(0, summary.warmup.reward_pass_at_2)] if summary.warmup else []
    return start + [(row.iteration, row.reward_pass_at_2) for row in summary.evolve]


def _kept_plot(rows: Iterable[IterationSummary]) -> str:
    points = [Point(row.iteration, row.kept / row.sampled) for row in rows if row.sampled]
    return line_plot(
        [Series("kept", "first", points)], label="Share kept by iteration", percent=True, width=400, height=210
    )


def _temperature_plot(rows: Iterable[IterationSummary]) -> str:
    points = [Point(row.iteration, row.temperature) for row in rows]
    return line_plot(
        [Series("T", "second", points)], label="Temperature by iteration", percent=False, width=400, height=210
    )


def _totals(rows: tuple[IterationSummary, ...]) -> dict[str, Any]:
    speeds = [row.tokens_per_second for row in rows if row.tokens_per_second]
    return {
        "iterations": len(rows),
        "sampled": sum(row.sampled for row in rows),
        "kept": sum(row.kept for row in rows),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
    }


def _stages(seconds: dict[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.values(), default=0.0)
    return [
        {"name": stage_name(name), "seconds": spent, "share": spent / longest}
        for name, spent in seconds.items()
        if longest
    ]


def _changed(mapping: dict[str, Any]) -> dict[str, Any]:
    """What the run set differently from the defaults, except where it wrote."""
    defaults = flat_config(asdict(RunConfig()))
    return {
        key: value
        for key, value in flat_config(mapping).items()
        if key != "output_dir" and (key not in defaults or defaults[key] != value)
    }


def _when(events: list[dict[str, Any]]) -> str:
    if not events:
        return ""
    return datetime.fromtimestamp(events[0]["time"], UTC).strftime("%Y-%m-%d %H:%M UTC")


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _score(value: float) -> str:
    return f"{value:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
