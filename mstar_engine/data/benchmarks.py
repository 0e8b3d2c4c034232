"""The problem sets that the evaluate stage measures, with what their data set says about tables and published rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mstar_engine.config import RunConfig
from mstar_engine.data.files import read_source, some, source_named
from mstar_engine.data.formats import FORMATS
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import UnusableGolds
from mstar_engine.data.sources import DataSet
from mstar_engine.types import Problem

OWN_SETS = ("test", "ood")
"""The sets of a run's own that are evaluated beside its benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Problems that are measured together, as `name`.

    `order`: the categories that come first in tables, by the names that problems have for them. `published`: the
    variant of the answer rules by which published numbers were made, "" where there is none.
    """

    name: str
    problems: Sequence[Problem]
    order: tuple[str, ...] = ()
    published: str = ""


def read_benchmarks(
    config: RunConfig,
    listed: Path | None = None,
    *,
    counted: dict[str, Quarantine] | None = None,
    unusable: UnusableGolds | None = None,
) -> list[Benchmark]:
    """The configured benchmarks, in their order; none when the run does not evaluate.

    `listed`: the file that names the rows that were set aside; it is there when some were. Of more than
    `evaluate.limit` problems, that many are drawn by the run's seed and their ids. ValueError for a benchmark that
    cannot be read, is empty, or has more than `data.max_quarantined` of its rows set aside. `counted` gets the counts
    of each by its name; `unusable`: see `read_problems`.
    """
    if "evaluate" not in config.stages:
        return []
    found, everything = [], Quarantine()
    try:
        for name, text in config.evaluate.benchmarks.items():
            key = f"evaluate.benchmarks.{name}"
            source, folder = source_named(config.data, key, text)
            where = "" if listed is None else str(listed)
            quarantine = Quarantine()
            if counted is not None:
                counted[name] = quarantine
            problems = read_source(
                config.data, key, source, folder, everything, where, quarantine=quarantine, unusable=unusable
            )
            form = FORMATS[source.form]
            kept = some(problems, config.evaluate.limit or len(problems), config.seed)
            found.append(Benchmark(name=name, problems=kept, order=form.order, published=form.published))
    finally:
        if listed is not None and (everything.listed or listed.exists()):
            everything.write(listed)
    return found


def own_sets(config: RunConfig, data: DataSet) -> list[Benchmark]:
    """The run's own sets that have problems, as benchmarks."""
    found = []
    for name in OWN_SETS:
        text = getattr(config.data, name) or config.data.train if config.data.dataset_name == "files" else ""
        form = FORMATS[source_named(config.data, f"data.{name}", text)[0].form] if text else None
        if getattr(data, name):
            order, published = (form.order, form.published) if form else ((), "")
            found.append(Benchmark(name=name, problems=getattr(data, name), order=order, published=published))
    return found
