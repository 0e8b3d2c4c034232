"""What an evaluation leaves to be read: `evaluation.parquet` for programs, `evaluation.md` for a paper's draft.

Both say the same as summary.json does, and are replaced whole. Every number stands with its 95% interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mstar_engine.durable import replace_file, replace_text
from mstar_engine.summary import ALL, BenchmarkSummary, EvaluationSummary
from mstar_engine.types import Estimate

MEAN = "mean"
"""What the mean over the benchmarks is called in the place of a benchmark."""
SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("category", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("items", pa.int64()),
    ]
)
_TITLES = {
    "greedy": "greedy",
    "greedy_published": "greedy, published rules",
    "pass_at_1": "mean of the samples",
    "majority": "majority",
    "weighted": "weighted vote",
    "best_of_n": "best of N",
}
_NUMBERED = {
    "pass_at_": "Pass@{}",
    "unbiased_pass_at_": "Pass@{}, unbiased",
    "reward_pass_at_": "Reward-Pass@{}",
}


def metric_title(name: str) -> str:
    """What tables call a metric of an evaluation; one of another version by its name."""
    if name in _TITLES:
        return _TITLES[name]
    prefix = name.rstrip("0123456789")
    return _NUMBERED[prefix].format(name[len(prefix) :]) if prefix in _NUMBERED and prefix != name else name


def policy_in_words(evaluation: EvaluationSummary) -> str:
    """How far the policy that was evaluated had come."""
    count = evaluation.iteration
    return {
        "base": "as it is",
        "warmup": "after warm-up",
        "final": f"after {count} iteration{'' if count == 1 else 's'}",
    }.get(evaluation.policy, evaluation.policy)


def sampling_in_words(evaluation: EvaluationSummary) -> str:
    """What was sampled of each problem."""
    if not evaluation.n:
        return "greedy"
    samples = "1 sample" if evaluation.n == 1 else f"{evaluation.n} samples"
    return f"greedy, and {samples} of each problem at temperature {evaluation.temperature:g}"


def published_in_words(one: BenchmarkSummary) -> str:
    """By which rules published numbers were made, and how many problems those cannot judge; "" without such rules."""
    if not one.published:
        return ""
    if "greedy_published" not in one.metrics[ALL]:
        return f"No column by the published rules ({one.published}): no problem lists its choices."
    kept = f", which cannot judge {one.unpublished:,} of the problems: these count as in the column before"
    return f"Published rules: {one.published}{kept if one.unpublished else ''}."


def columns_of(metrics: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """The metrics of a table, in their order."""
    return list(dict.fromkeys(name for row in metrics.values() for name in row))


def write_tables(folder: Path, evaluation: EvaluationSummary, notes: Mapping[str, str]) -> None:
    """Write both files into `folder`. `notes`: what the Markdown says on top, by name, as the model and the seed."""
    table = pa.Table.from_pylist(list(_rows(evaluation)), schema=SCHEMA)
    replace_file(folder / "evaluation.parquet", lambda path: pq.write_table(table, path))
    replace_text(folder / "evaluation.md", markdown(evaluation, notes))


def _rows(evaluation: EvaluationSummary) -> Iterator[dict[str, str | float]]:
    tables = {name: one.metrics for name, one in evaluation.benchmarks.items()}
    for benchmark, table in (tables | ({MEAN: {ALL: evaluation.mean}} if evaluation.mean else {})).items():
        for category, metrics in table.items():
            for metric, found in metrics.items():
                yield {
                    "benchmark": benchmark, "category": category, "metric": metric, "value": found.value,
                    "low": found.low, "high": found.high, "items": found.items,
                }  # fmt: skip


def markdown(evaluation: EvaluationSummary, notes: Mapping[str, str]) -> str:
    """The tables in Markdown: one a benchmark, and their mean."""
    lines = ["# Evaluation", ""]
    lines += [f"- {cell(name)}: {cell(text)}" for name, text in notes.items()]
    lines += [f"- policy: {policy_in_words(evaluation)}", f"- responses: {sampling_in_words(evaluation)}"]
    for name, one in evaluation.benchmarks.items():
        lines += ["", f"## {name}", "", *_table(one)]
        if said := published_in_words(one):
            lines += ["", said]
    if evaluation.mean:
        counted = evaluation.averaged
        columns = list(evaluation.mean)
        lines += ["", f"## Mean of {len(counted)} benchmarks", "", f"{', '.join(counted)}, each weighing the same.", ""]
        lines += [_line([metric_title(one) for one in columns]), _line(["---:"] * len(columns))]
        lines += [_line([percent(evaluation.mean[one]) for one in columns])]
    lines += [
        "",
        "Percent, with 95% intervals over problems: Wilson's for shares of problems, the percentile bootstrap for "
        "means over samples; that of a mean over benchmarks from theirs (Zou and Donner 2008).",
        "",
    ]
    return "\n".join(lines)


def _table(one: BenchmarkSummary) -> list[str]:
    columns = columns_of(one.metrics)
    lines = [
        _line(["category", "problems", *map(metric_title, columns)]),
        _line(["---", *["---:"] * (1 + len(columns))]),
    ]
    for category, metrics in one.metrics.items():
        items = metrics["greedy"].items
        values = [percent(metrics[name]) if name in metrics else "" for name in columns]
        lines.append(_line([cell(category), f"{items:,}", *values]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def percent(found: Estimate) -> str:
    """An accuracy as "61.3 (57.0 to 65.4)", in percent."""
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def cell(text: str) -> str:
    """A text from data on one line of Markdown, where it is text and nothing else."""
    plain = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return "".join(f"\\{one}" if one in "\\|<>[]`*#!~" else one for one in plain) or "(nothing)"
