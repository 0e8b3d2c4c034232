"""The course of a run: small plots of every metric, sweeps of the temperature, the funnel."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from mstar_engine.evolve.dynamics import wilson
from mstar_engine.report.funnel import pseudo_funnels, response_funnels
from mstar_engine.report.html import build_report
from mstar_engine.report.metrics import GROUPS, OTHERS, metric_of, metric_points, small_plots
from mstar_engine.report.temperatures import shown_sweeps, sweep_metric, temperature_plot
from mstar_engine.summary import IterationSummary, PseudoSummary, Summary, read_summary
from mstar_engine.types import Estimate
from runs import DYNAMICS, HOSTILE, dynamics, sweep, write_rich_run, write_run


def row(iteration: int, **fields) -> IterationSummary:
    return IterationSummary(
        **{"iteration": iteration, "greedy": wilson(1, 2), "kept": 2, "sampled": 8, "temperature": 1.0, "seconds": 1.0}
        | fields
    )


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A run with everything: its summary and its report."""
    path = write_rich_run(tmp_path_factory.mktemp("runs") / "rich")
    return read_summary(path / "summary.json"), build_report(path)


def test_every_metric_has_its_place(rich):
    summary, text = rich
    assert {name for group in GROUPS.values() for name in group} == set(DYNAMICS)
    plots = small_plots(summary, 8, 2)
    assert list(plots) == [*GROUPS, OTHERS]
    shown = {one.title for group in plots.values() for one in group}
    on_the_main_plot = {"greedy", "pass_at_k", "reward_pass_at_k"}
    titles = {metric_of(name, 8, 2).title for name in DYNAMICS if name not in on_the_main_plot}
    assert shown == titles | {f"novelty {HOSTILE}"}
    assert all(one.says for title, group in plots.items() if title != OTHERS for one in group)
    for title in titles:
        assert f"<b>{title}</b>" in text


def test_readings_and_units(rich):
    plots = {one.title: one for group in small_plots(rich[0], 8, 2).values() for one in group}
    assert (plots["Length"].now, plots["Length"].interval) == ("30.5", "20 to 24")
    assert plots["Length"].before == "from 21.5"
    assert plots["Pass@1"].now == "40.0%" and plots["Pass@1"].before == "from 31.0%"
    below = plots["Pass@8 minus greedy"]
    assert below.now == "-5.0%" and "-10.0 to 2.0" in below.interval and 'class="mark"' in below.plot
    assert 'class="mark"' not in plots["Length"].plot and plots[f"novelty {HOSTILE}"].now == "3.25"
    for one in plots.values():
        root = ElementTree.fromstring(one.plot)
        assert len(list(root.iter("circle"))) == 3 and len(list(root.iter("polygon"))) == 1


def test_votes_share_a_scale():
    first = {"majority": wilson(20, 100), "weighted": wilson(90, 100)}
    plots = small_plots(Summary(evolve=(row(1, dynamics=first),)), 8, 2)["Voting"]
    ticks = [re.findall(r'text-anchor="end">([\d.]+%)<', one.plot) for one in plots]
    assert ticks[0] == ticks[1] and ticks[0]


def test_a_metric_may_be_absent_now_and_then():
    rows = (row(1, dynamics={"entropy": wilson(1, 2)}), row(2), row(3, dynamics={"entropy": wilson(1, 4)}))
    assert [x for x, _ in metric_points(Summary(evolve=rows), "entropy")] == [1, 3]
    assert small_plots(Summary(), 8, 2) == {} and small_plots(Summary(evolve=(row(1),)), 8, 2) == {}
    # Without a place on the main plot, greedy has a small one.
    assert list(small_plots(Summary(evolve=(row(1, dynamics={"pass_at_k": wilson(1, 2)}),)), 8, 2)) == ["Accuracy"]


def test_sweeps_mark_what_was_chosen(rich):
    first, second = shown_sweeps(rich[0].evolve)
    assert (first.iteration, first.weak, first.drawn) == (1, 1, 1234)
    assert ">chosen 0.5<" in first.plot and ">before 1<" in first.plot
    assert ">stays at 1<" in second.plot and "before" not in second.plot
    for one, lines in ((first, 0), (second, 1)):
        root = ElementTree.fromstring(one.plot)
        assert len(list(root.iter("polyline"))) == len(list(root.iter("polygon"))) == lines
        dots = [circle.get("class") for circle in root.iter("circle")]
        assert dots == ["dot first", "dot first", "dot first weak"]
        assert sum("whisker" in line.get("class") for line in root.iter("line")) == 3
        assert "temperature" in [text.text for text in root.iter("text")]
    text = rich[1]
    assert "racing: 1,234 samples, 7.5 s; 1 temperature on fewer problems" in text
    assert "Before iteration 1" in text and "Reward-Pass@2 by temperature" in text and "the controller's model" in text


def test_marks_lie_at_their_temperatures():
    root = ElementTree.fromstring(shown_sweeps([row(1, sweep=sweep(0.5))])[0].plot)
    at = {circle.get("cx") for circle in root.iter("circle")}
    marks = {line.get("class"): line.get("x1") for line in root.iter("line") if line.get("class").startswith("mark")}
    dots = sorted(map(float, at))
    assert float(marks["mark strong"]) == dots[0] and float(marks["mark"]) == dots[1]


def test_other_metrics_of_a_sweep():
    balance = replace(sweep(0.5), metric="balance")
    assert sweep_metric(balance) == "balance score" and "%" not in shown_sweeps([row(1, sweep=balance)])[0].plot
    assert sweep_metric(replace(sweep(0.5), metric="pass_at_k", k=4)) == "Pass@4"
    assert sweep_metric(replace(sweep(0.5), metric="later")) == "later"
    assert shown_sweeps([row(1, sweep=replace(sweep(0.5), temperatures=(), values=()))]) == []


def test_a_fixed_temperature_has_no_figure(tmp_path):
    assert temperature_plot([row(1), row(2)]) is None
    assert temperature_plot([row(1), row(2, temperature=0.9)]) is not None
    assert temperature_plot([row(1, sweep=sweep(1.0))]) is not None
    text = build_report(write_run(tmp_path / "run"))
    assert "<h2>Temperature" not in text and "<dt>sampled at temperature</dt><dd>1</dd>" in text


def test_the_funnel_in_numbers():
    rows = [row(1, sampled=100, correct=40, kept=10), row(2, sampled=50, correct=None, kept=25), row(3, sampled=0)]
    funnels = response_funnels(rows)
    assert [(f.whole_share, f.middle_share, f.rest_share) for f in funnels[:2]] == [(1.0, 0.4, 0.1), (0.5, 0.0, 0.25)]
    assert funnels[0].of_whole(40) == 0.4 and funnels[1].of_whole(None) is None and funnels[2].of_whole(2) is None
    assert response_funnels([]) == [] and pseudo_funnels(rows) == []
    pseudo = PseudoSummary(problems=40, voted=30, passed=20, accuracy=wilson(18, 20))
    (one,) = pseudo_funnels([row(1), row(2, pseudo=pseudo)])
    assert (one.iteration, one.whole, one.middle, one.rest, one.accuracy) == (2, 40, 30, 20, wilson(18, 20))


def test_the_funnel_on_the_page(rich):
    tables = [table.split("</table>")[0] for table in rich[1].split('<table class="funnel">')[1:]]
    cells = [re.findall(r"<td>([^<]*)", table) for table in tables]
    assert [cell.strip() for cell in cells[0]] == ["7", "5", "2", "7", "6", "2"]
    assert [cell.strip() for cell in cells[1]] == ["40", "30", "20", "90.0%"]
    assert "71%" in tables[0] and "69.9 to 97.2" in tables[1]


def test_hostile_names_are_escaped(rich):
    assert "<script" not in rich[1] and "novelty &lt;script&gt;" in rich[1] and "{{ 7 * 7 }}" in rich[1]


def test_an_estimate_of_a_single_iteration_is_a_dot():
    one = small_plots(Summary(evolve=(row(3, dynamics=dynamics(0)),)), 8, 2)["Exploration"][0]
    assert one.before == "" and 'class="whisker first"' in one.plot
    flat = Estimate(value=0.0, items=1, low=0.0, high=0.0)
    ElementTree.fromstring(
        small_plots(Summary(evolve=(row(3, dynamics={"entropy": flat}),)), 8, 2)["Exploration"][0].plot
    )
