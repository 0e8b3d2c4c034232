"""An evaluation on the page: a table a benchmark, and the page of a run that did nothing else."""

import re
from dataclasses import replace

from mstar_engine.config_parse import load_config
from mstar_engine.report.evaluation import evaluation_tables
from mstar_engine.report.html import build_report
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import ALL, EvaluationSummary, Summary
from runs import HOSTILE, evaluated, write_rich_run, write_run


def test_tables_say_what_was_measured():
    found = evaluated()
    shown = evaluation_tables(Summary(evaluation=found))
    mathvista, other, mean = shown.tables
    assert (shown.policy, shown.responses) == (
        "after 2 iterations", "greedy, and 16 samples of each problem at temperature 1"
    )  # fmt: skip
    assert [row.category for row in mathvista.rows] == ["FQA", HOSTILE, ALL]
    assert [row.problems for row in mathvista.rows] == [100, 100, 200] and mathvista.rows[-1].whole
    metrics = found.benchmarks["mathvista"].metrics
    assert mathvista.rows[0].cells == tuple(metrics["FQA"].values())
    assert mathvista.columns[:3] == ("greedy", "greedy, published rules", "mean of the samples")
    assert len(other.columns) == len(mathvista.columns) - 1 == len(mean.columns)
    assert mean.rows[0].cells == tuple(found.mean.values()) and mean.title == "Mean of 2 benchmarks"
    assert evaluation_tables(Summary()) is None
    assert evaluation_tables(Summary(evaluation=EvaluationSummary(policy="base"))) is None


def test_the_page_of_an_evolved_run(tmp_path):
    text = build_report(write_rich_run(tmp_path / "run"))
    tables = text.split('<table class="evaluation">')[1:]
    assert len(tables) == 3 and "<script" not in text
    cells = re.findall(r'class="value">([^<]*)</span><small>([^<]*)</small>', tables[0].split("</table>")[0])
    assert len(cells) == 3 * 15 and cells[0] == ("31.0%", "22.8 to 40.6")
    assert "Published rules" in text and "<h2>Accuracy by iteration" in text and "after 2 iterations" in text
    assert '<table class="evaluation">' not in build_report(write_run(tmp_path / "plain"))


def test_the_page_of_a_run_that_only_evaluates(tmp_path):
    config = load_config(None, [f"output_dir={tmp_path / 'run'}", "stages=[evaluate,report]"])
    with RunDirectory.create_or_resume(config) as directory:
        directory.write_summary(Summary(evaluation=replace(evaluated(), policy="base", iteration=0)))
    text = build_report(tmp_path / "run")
    assert "is evaluated as it is" in text and "Unfinished" not in text and "learns from them" not in text
    assert "Accuracy by iteration" not in text and "<dt>iterations" not in text
    assert re.findall(r'class="card headline">\s*<h2>(\S+)', text) == list(evaluated().benchmarks)
