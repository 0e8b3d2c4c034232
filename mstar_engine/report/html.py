"""The report of a run: one HTML file that opens anywhere, offline, and explains itself.

It reads only what the run wrote (config.yaml, summary.json, journal.jsonl, rollouts/, report_images/), and works on
an unfinished run too. Everything is inline; the page's own policy forbids scripts and the network, and every text from
data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mstar_engine.durable import replace_text
from mstar_engine.evaluation_tables import policy_in_words
from mstar_engine.report.browser import browser
from mstar_engine.report.evaluation import evaluation_tables
from mstar_engine.report.funnel import pseudo_funnels, response_funnels
from mstar_engine.report.metrics import small_plots
from mstar_engine.report.page import render
from mstar_engine.report.plot import Point, Series, both_widths, line_plot
from mstar_engine.report.run_files import RunFiles, read_run
from mstar_engine.report.samples import read_iterations
from mstar_engine.report.steps import BANDS
from mstar_engine.report.temperatures import shown_sweeps, sweep_metric, temperature_plot
from mstar_engine.report.verifier import verifier_table
from mstar_engine.report.words import kept_responses, lesson, stage_name
from mstar_engine.report.wrong_answers import wrong_answers
from mstar_engine.summary import ALL, IterationSummary, Summary
from mstar_engine.types import Estimate
from mstar_engine.yaml_text import write_yaml


@dataclass(frozen=True, slots=True)
class Headline:
    """An accuracy before and after the evolution; `when` says what the second is of."""

    label: str
    before: Estimate | None
    after: Estimate
    when: str

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
    files = read_run(run)
    config, summary = files.config, files.summary
    steps = config["steps"]
    iterations = read_iterations(
        run,
        delimiter=steps.get("delimiter", "\n\n"),
        max_steps=steps.get("max_steps", 0),
        select=config["select"],
    )
    shown = [problem for one in iterations for problem in one.shown]
    sweeps = shown_sweeps(summary.evolve)
    newest_sweep = next((row.sweep for row in reversed(summary.evolve) if row.sweep), None)
    return render(
        "report.html.jinja",
        name=files.name,
        when=_when(files.events),
        config=config,
        changed=files.changed(),
        config_text=write_yaml(config),
        kept=kept_responses(config["select"]),
        summary=summary,
        evolved=bool(summary.evolve) or "evolve" in config["stages"],
        headlines=_headlines(summary),
        evaluation=evaluation_tables(summary),
        totals=_totals(summary.evolve),
        stages=_stages(summary.seconds),
        accuracy_plot=_accuracy_plot(files),
        small_plots=small_plots(summary, files.k, files.reward_k),
        funnels=response_funnels(summary.evolve),
        pseudo=pseudo_funnels(summary.evolve),
        wrong=wrong_answers(summary.evolve),
        temperature_plot=temperature_plot(summary.evolve),
        sweeps=sweeps,
        sweep_metric=sweep_metric(newest_sweep) if newest_sweep else "",
        modelled=any(row.sweep and row.sweep.model for row in summary.evolve),
        k=files.k,
        reward_k=files.reward_k,
        lesson=lesson(summary.prm.annotation.mode) if summary.prm else "",
        verifier=verifier_table(summary),
        reward_pass=any(point for _, point in _reward_pass(summary)),
        browser=browser(iterations),
        scored=any(response.steps for problem in shown for response in problem.responses),
        bands=range(BANDS),
    )


def _headlines(summary: Summary) -> list[Headline]:
    evaluation = summary.evaluation
    if summary.final is None:
        sets = evaluation.benchmarks if evaluation else {}
        when = policy_in_words(evaluation) if evaluation else ""
        return [Headline(name, None, one.metrics[ALL]["greedy"], when) for name, one in sets.items()]
    before, count = summary.warmup, len(summary.evolve)
    when = f"after {count} iteration{'' if count == 1 else 's'}"
    found = [Headline("Test problems", before and before.greedy, summary.final.greedy, when)]
    if summary.final.ood_greedy is not None:
        found.append(Headline("Out of distribution", before and before.ood_greedy, summary.final.ood_greedy, when))
    return found


def _estimates(pairs: Iterable[tuple[int, Estimate | None]]) -> list[Point]:
    return [Point(x, e.value, e.low, e.high) for x, e in pairs if e is not None]


def _accuracy_plot(run: RunFiles) -> Markup:
    start, rows = run.summary.warmup, run.summary.evolve
    greedy = [(0, start.validation_greedy)] if start else []
    passed = [(0, start.pass_at_k)] if start else []
    series = [
        Series(f"Pass@{run.k}", "second", _estimates(passed + [(row.iteration, row.pass_at_k) for row in rows])),
        Series(f"Reward-Pass@{run.reward_k}", "third", _estimates(_reward_pass(run.summary))),
        Series("greedy", "first", _estimates(greedy + [(row.iteration, row.greedy) for row in rows])),
    ]
    names = ", ".join(one.label for one in series if one.points)
    label = f"Accuracy by iteration: {names}"
    return both_widths(lambda w, h: line_plot(series, label=label, percent=True, width=w, height=h))


def _reward_pass(summary: Summary) -> list[tuple[int, Estimate | None]]:
    start = [(0, summary.warmup.reward_pass_at_2)] if summary.warmup else []
    return start + [(row.iteration, row.reward_pass_at_2) for row in summary.evolve]


def _totals(rows: tuple[IterationSummary, ...]) -> dict[str, Any]:
    speeds = [row.tokens_per_second for row in rows if row.tokens_per_second]
    return {
        "iterations": len(rows),
        "sampled": sum(row.sampled for row in rows),
        "kept": sum(row.kept for row in rows),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "temperatures": sorted({row.temperature for row in rows}),
    }


def _stages(seconds: dict[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.values(), default=0.0)
    return [
        {"name": stage_name(name), "seconds": spent, "share": spent / longest}
        for name, spent in seconds.items()
        if longest
    ]


def _when(events: list[dict[str, Any]]) -> str:
    if not events:
        return ""
    return datetime.fromtimestamp(events[0]["time"], UTC).strftime("%Y-%m-%d %H:%M UTC")
