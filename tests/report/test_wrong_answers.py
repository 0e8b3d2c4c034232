"""The table of why responses were wrong: counts by reason and iteration, and beside each wrong response its own."""

from dataclasses import replace

import pyarrow.parquet as pq

from mstar_engine.report.html import build_report
from mstar_engine.report.reasons import Outcome, Reason, reasons
from mstar_engine.report.samples import read_samples
from mstar_engine.report.wrong_answers import WrongRow, wrong_answers
from mstar_engine.summary import read_summary
from runs import HOSTILE, make_group, write_groups, write_rich_run, write_run


def test_counts_by_reason_and_iteration(tmp_path):
    rows = read_summary(write_rich_run(tmp_path / "run") / "summary.json").evolve
    table = wrong_answers(rows)
    # Of more than six the rarest share a column; a right answer is no reason.
    assert table.reasons == ("mismatch", "no answer", "unfinished (length)", "not a number", HOSTILE, "other")
    assert table.rows == (WrongRow(1, (1200, 30, 0, 4, 3, 0), 1237), WrongRow(2, (900, 0, 7, 0, 0, 4), 911))
    few = wrong_answers([replace(row, reasons={"match": 3, "mismatch": row.iteration}) for row in rows])
    assert (few.reasons, few.rows[1]) == (("mismatch",), WrongRow(2, (2,), 2))


def test_runs_that_do_not_say_why_have_no_table(tmp_path):
    rows = read_summary(write_run(tmp_path / "run") / "summary.json").evolve
    assert wrong_answers(rows) is None
    assert wrong_answers([replace(row, reasons={"match": 4}) for row in rows]) is None
    # An iteration of an earlier version is no row of noughts.
    later = [rows[0], replace(rows[1], reasons={"mismatch": 2})]
    assert [row.iteration for row in wrong_answers(later).rows] == [2]
    assert "Why the others are wrong" not in build_report(tmp_path / "run")


def test_the_table_is_on_the_page(tmp_path):
    page = build_report(write_rich_run(tmp_path / "run"))
    assert "Why the others are wrong" in page and "<small>97%</small>" in page
    assert page.count("<script>") == 0


def test_a_wrong_response_says_why(tmp_path):
    write_groups(tmp_path, make_group("one", ["12", "13", "x " * 50, "\n"]))
    problem = read_samples(tmp_path, responses=4)[0]
    wrong = [response.reason for response in problem.responses if response.correct is False]
    assert {reason.kind for reason in wrong} == {"wrong"}
    long = "mismatch: " + ("x " * 50)[:57] + "..."
    assert {reason.words for reason in wrong} == {"mismatch: 13", long, "no answer"}
    assert "mismatch: 13" in build_report(tmp_path)


def test_rollouts_of_earlier_versions_are_shown_without(tmp_path):
    write_groups(tmp_path, make_group("one", ["13"]))
    (file,) = (tmp_path / "rollouts").glob("iteration_*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["reason"]), file)
    (response,) = read_samples(tmp_path)[0].responses
    assert response.reason == Reason("wrong")


def test_a_cut_response_is_unfinished_whatever_it_says():
    cut = Outcome("1", False, False, None, 3, "length", answer="1", verdict="unfinished (length)")
    assert reasons([cut], {}) == [Reason("unfinished", "it did not come to an end")]
