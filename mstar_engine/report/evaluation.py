"""The tables of an evaluation as the page shows them: a problem set each, and the mean of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from mstar_engine.evaluation_tables import (
    columns_of,
    metric_title,
    policy_in_words,
    published_in_words,
    sampling_in_words,
)
from mstar_engine.summary import ALL, Summary
from mstar_engine.types import Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """The accuracies of one category, None where one is not known; `whole` is that of all problems."""

    category: str
    problems: int
    cells: tuple[Estimate | None, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One problem set, or the mean, whose only row has no category."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All of it; `policy` and `responses` in words, `published` and `sampled` say what needs explaining."""

    policy: str
    responses: str
    tables: tuple[Table, ...]
    published: bool
    sampled: bool


def evaluation_tables(summary: Summary) -> Evaluation | None:
    """What the run evaluated; None when nothing."""
    found = summary.evaluation
    if found is None or not found.benchmarks:
        return None
    tables = []
    for name, one in found.benchmarks.items():
        columns = columns_of(one.metrics)
        rows = tuple(
            Row(category, next(iter(metrics.values())).items, tuple(map(metrics.get, columns)), category == ALL)
            for category, metrics in one.metrics.items()
        )
        about = ". ".join(filter(None, (f"{one.problems:,} problems", published_in_words(one).rstrip("."))))
        tables.append(Table(name, about, tuple(map(metric_title, columns)), rows))
    if found.mean:
        row = Row("", 0, tuple(found.mean.values()), True)
        about = f"{', '.join(found.averaged)}, each weighing the same"
        title = f"Mean of {len(found.averaged)} benchmarks"
        tables.append(Table(title, about, tuple(map(metric_title, found.mean)), (row,)))
    names = {name for one in found.benchmarks.values() for name in columns_of(one.metrics)}
    return Evaluation(
        policy_in_words(found), sampling_in_words(found), tuple(tables), "greedy_published" in names, found.n > 1
    )
