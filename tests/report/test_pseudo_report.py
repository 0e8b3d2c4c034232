"""Pseudo-labels in the report: told apart from given answers, beside the true ones where these are known."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mstar_engine.report.html import build_report
from mstar_engine.report.samples import read_samples
from mstar_engine.rollout_file import ADDED, read_rollouts
from runs import make_group, write_groups


def labelled(name: str, gold: str | None, truth: str | None):
    group = make_group(name, ["12", "13"], source=name)
    return replace(group, problem=replace(group.problem, gold=gold, label="pseudo", truth=truth))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_groups(
        tmp_path / "run",
        labelled("known", "12", "13"),
        labelled("unknown", "12", None),
        labelled("refused", None, "13"),
        make_group("given", ["12"], source="given"),
    )
    return tmp_path / "run"


def test_each_kind_of_answer_is_named(run: Path) -> None:
    shown = {problem.id: (problem.label, problem.gold, problem.truth) for problem in read_samples(run)}
    assert shown == {
        "known": ("pseudo", "12", "13"),
        "unknown": ("pseudo", "12", None),
        "refused": ("pseudo", None, "13"),
        "given": ("gold", "12", None),
    }
    text = re.sub("<[^>]*>", "", build_report(run))
    for said in ("pseudo-label 12, true answer 13;", "pseudo-label 12;", "no pseudo-label, true answer 13;"):
        assert text.count(said) == 1
    assert text.count("answer 12; ") == 1


def test_files_of_before_are_read(run: Path) -> None:
    """Columns that came later may be missing."""
    path = run / "rollouts" / "iteration_0001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(list(ADDED)), path)
    assert {(problem.label, problem.truth) for problem in read_samples(run)} == {("gold", None)}
    assert {(group.problem.label, group.problem.truth) for group in read_rollouts(path)} == {("gold", None)}
    assert "pseudo" not in re.sub("<[^>]*>", "", build_report(run)).split("Configuration")[0]
