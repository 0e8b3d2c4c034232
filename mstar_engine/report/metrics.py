"""The metrics of the dynamics as small plots: what each is called, what it says, and where it stands.

Names that this version does not know are shown too, by name and as plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from mstar_engine.report.plot import Mark, Point, Series, line_plot
from mstar_engine.report.scale import show, show_interval
from mstar_engine.summary import Summary
from mstar_engine.types import Estimate

WIDTH, HEIGHT = 280, 168


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's title and one line that explains it, in which {k} and {reward_k} stand for the K in use."""

    title: str
    says: str
    percent: bool = True


GROUPS: dict[str, dict[str, Metric]] = {
    "Accuracy": {
        "greedy": Metric("Greedy", "The likeliest response is right."),
        "pass_at_1": Metric("Pass@1", "One sample is right, on average."),
        "pass_at_k": Metric("Pass@{k}", "At least one of {k} samples is right."),
        "unbiased_pass_at_k": Metric("Pass@{k}, unbiased", "Pass@{k} averaged over every choice of {k} samples."),
        "reward_pass_at_k": Metric("Reward-Pass@{reward_k}", "One of the {reward_k} best-scored samples is right."),
        "solved_all": Metric("Solved by all", "Problems that every sample gets right: little left to learn."),
        "solved_some": Metric("Solved by some", "Problems that only some samples get right: here learning happens."),
        "solved_none": Metric("Unsolved", "Problems that no sample gets right: nothing to keep."),
    },
    "Voting": {
        "majority": Metric("Majority vote", "The answer that most samples give is right."),
        "weighted": Metric("Weighted vote", "The answer with the largest sum of scores is right."),
        "best_of_n": Metric("Best of N", "The answer of the best-scored sample is right."),
    },
    "Exploration": {
        "pass_at_k_minus_greedy": Metric("Pass@{k} minus greedy", "What sampling still finds beyond the likeliest."),
        "entropy": Metric("Entropy", "Nats a token: how undecided the policy is.", percent=False),
        "distinct": Metric("Different texts", "Samples of a problem that differ from each other."),
    },
    "The responses themselves": {
        "length": Metric("Length", "Tokens a response.", percent=False),
        "steps": Metric("Steps", "Steps a response.", percent=False),
    },
}
OTHERS = "Others"
# On the main plot of the report, when measured there.
_MAIN = {"greedy": "greedy", "pass_at_k": "pass_at_k", "reward_pass_at_k": "reward_pass_at_2"}


@dataclass(frozen=True, slots=True)
class SmallPlot:
    """A metric as the page shows it: newest and first reading in words, and its curve."""

    title: str
    says: str
    now: str
    interval: str
    before: str
    plot: Markup


def metric_of(name: str, k: int, reward_k: int) -> Metric:
    """The metric of that name with its K filled in; an unknown one has its name for a title."""
    for group in GROUPS.values():
        if name in group:
            found = group[name]
            return Metric(found.title.format(k=k, reward_k=reward_k), found.says.format(k=k, reward_k=reward_k),
                          found.percent)  # fmt: skip
    return Metric(name, "", percent=False)


def metric_points(summary: Summary, name: str) -> list[tuple[int, Estimate]]:
    """(iteration, estimate) wherever `name` was measured; iteration 0 is the warmed-up policy."""
    dynamics = [(0, summary.warmup.dynamics)] if summary.warmup else []
    dynamics += [(row.iteration, row.dynamics) for row in summary.evolve]
    return [(iteration, found[name]) for iteration, found in dynamics if name in found]


def small_plots(summary: Summary, k: int, reward_k: int) -> dict[str, list[SmallPlot]]:
    """The small plots by group, groups without any left out. What the main plot shows is not shown again."""
    names = dict.fromkeys(name for row in (summary.warmup, *summary.evolve) if row for name in row.dynamics)
    main = {name for name, field in _MAIN.items() if any(getattr(row, field) is not None for row in summary.evolve)}
    known = {name for group in GROUPS.values() for name in group}
    groups = {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    groups[OTHERS] = [name for name in names if name not in known]
    shown = {}
    for title, members in groups.items():
        # Votes are read against each other.
        shared = _range(summary, members) if title == "Voting" else None
        plots = [_small(summary, name, k, reward_k, shared) for name in members if name not in main]
        if plots:
            shown[title] = plots
    return shown


def _range(summary: Summary, names: list[str]) -> tuple[float, float] | None:
    bounds = [bound for name in names for _, e in metric_points(summary, name) for bound in (e.low, e.high)]
    return (min(bounds), max(bounds)) if bounds else None


def _small(summary: Summary, name: str, k: int, reward_k: int, bounds: tuple[float, float] | None) -> SmallPlot:
    metric = metric_of(name, k, reward_k)
    measured = metric_points(summary, name)
    (first, start), (last, newest) = measured[0], measured[-1]
    points = [Point(x, e.value, e.low, e.high) for x, e in measured]
    zero = [Mark(0.0, across=True)] if min(e.low for _, e in measured) < 0 else []
    return SmallPlot(
        title=metric.title,
        says=metric.says,
        now=show(newest.value, metric.percent, exact=True),
        interval=show_interval(newest.low, newest.high, metric.percent),
        before=f"from {show(start.value, metric.percent, exact=True)}" if first != last else "",
        plot=line_plot(
            [Series(metric.title, "first", points)],
            label=f"{metric.title} by iteration",
            percent=metric.percent,
            width=WIDTH,
            height=HEIGHT,
            marks=zero,
            ends="none",
            bounds=bounds,
        ),
    )
