"""The table of an ablation: statistics against worked examples, and what it says about the paper."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mstar_engine.evolve.ablation_table import Arm, Mean, build_table, mean_of, paired_p, verdict
from mstar_engine.presets import ABLATIONS, PRESETS

SELECTION = ABLATIONS["paper_selection"]
values = st.lists(st.floats(0, 100), min_size=2, max_size=8)


def summary(test: float, ood: float, *, kept: int = 5, accuracy: dict | None = None, drawn: int = 0) -> dict:
    share = {"items": 10, "low": 0.0, "high": 1.0}
    entry = {"sampled": 100, "kept": kept, "sweep": {"drawn": drawn} if drawn else None}
    entry["pseudo"] = None if accuracy is None else {"accuracy": accuracy}
    return {
        "warmup": {"greedy": share | {"value": 0.4}, "ood_greedy": share | {"value": 0.2}},
        "final": {"greedy": share | {"value": test / 100}, "ood_greedy": share | {"value": ood / 100}},
        "evolve": [entry, entry],
    }


@given(values)
def test_intervals_are_students(found: list[float]) -> None:
    mean = mean_of(found)
    assert mean.low <= mean.value + 1e-9 and mean.value <= mean.high + 1e-9
    if max(found) - min(found) > 1e-3:
        low, high = stats.t.interval(0.95, len(found) - 1, loc=mean.value, scale=stats.sem(found))
        assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
        assert paired_p(found) == pytest.approx(stats.ttest_1samp(found, 0.0).pvalue)


def test_one_seed_has_no_interval() -> None:
    assert mean_of([3.0]) == Mean(value=3.0, low=None, high=None, seeds=1)
    assert paired_p([3.0]) is None
    assert verdict(mean_of([3.0]), 2.0) == "open"


@pytest.mark.parametrize(
    ("interval", "paper", "said"),
    [
        ((1.0, 3.0), 2.0, "agrees"),
        ((-3.0, -1.0), -0.1, "agrees"),
        ((1.0, 3.0), -2.0, "disagrees"),
        ((1.0, 3.0), 0.0, "disagrees"),
        ((-1.0, 3.0), 2.0, "open"),
        ((0.0, 3.0), 2.0, "open"),
        ((1.0, 3.0), None, ""),
    ],
)
def test_verdicts(interval: tuple[float, float], paper: float | None, said: str) -> None:
    ours = Mean(value=sum(interval) / 2, low=interval[0], high=interval[1], seeds=5)
    assert verdict(ours, paper) == said


def test_pairs_are_seeds() -> None:
    """Arms that move together over seeds are told apart by a small steady difference; seeds are matched by number."""
    base = [50.0, 60.0, 40.0, 70.0]
    arms = [Arm(preset="continuous_25", seed=seed, summary=summary(value, 30)) for seed, value in enumerate(base)]
    ahead = [Arm(preset="top_2", seed=s, summary=summary(base[s] + 2 + 0.1 * s, 30 - s)) for s in (3, 1, 0)]
    table = build_table(SELECTION, PRESETS, arms + ahead)
    assert [row.preset for row in table.rows] == ["continuous_25", "top_2"]
    row = table.rows[1]
    assert row.seeds == (0, 1, 3) and row.by_seed["greedy"] == pytest.approx([52.0, 62.1, 72.3])
    gap = row.gap["greedy"]
    assert gap.ours.value == pytest.approx((2 + 2.1 + 2.3) / 3) and gap.ours.low > 1.5
    assert gap.p == pytest.approx(stats.ttest_1samp([2.0, 2.1, 2.3], 0).pvalue)
    assert gap.paper == pytest.approx(2.2) and gap.verdict == "agrees"
    assert row.gap["ood_greedy"].verdict == "open"
    assert table.rows[0].gap is None
    assert table.warmup["greedy"].value == pytest.approx(40.0)


def test_it_says_where_it_disagrees() -> None:
    arms = [Arm(preset="continuous_25", seed=s, summary=summary(60 + s, 30)) for s in range(3)]
    arms += [Arm(preset="top_2", seed=s, summary=summary(55 + s + 0.1 * (s == 1), 30)) for s in range(3)]
    text = build_table(SELECTION, PRESETS, arms).markdown()
    assert re.search(r"Disagrees with the paper: Top-2, test: -5\.0 \(.*\) here, \+2\.2 there\.", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables[:4]}) == 1
    widths = {len(line) for line in tables[: len(tables) // 3]}
    assert len(widths) == 1, "columns line up as plain text"


def test_costs_and_pseudo_labels() -> None:
    right = {"value": 0.75, "items": 20, "low": 0.5, "high": 0.9}
    arms = [
        Arm(preset="top_2", seed=0, summary=summary(60, 30, kept=7)),
        Arm(preset="pseudo_0", seed=0, summary=summary(61, 30, accuracy=right, drawn=50)),
    ]
    rows = {row.preset: row for row in build_table(ABLATIONS["paper_prompts"], PRESETS, arms).rows}
    assert rows["top_2"].kept == 14 and rows["top_2"].sampled == 200 and rows["top_2"].swept == 0
    assert rows["pseudo_0"].swept == 100 and rows["pseudo_0"].pseudo_label_accuracy == pytest.approx(75.0)
    assert rows["top_2"].pseudo_label_accuracy is None
    assert "75.0%" in build_table(ABLATIONS["paper_prompts"], PRESETS, arms).markdown()


def test_the_figure_shows_paired_differences_as_shares() -> None:
    """Seeds far apart, rows close together: the intervals are those of the differences."""
    arms = [Arm(preset="continuous_25", seed=s, summary=summary(40 + 20 * s, 30)) for s in range(2)]
    arms += [Arm(preset="top_2", seed=s, summary=summary(44.9 + 20.2 * s, 30)) for s in range(2)]
    rows = build_table(SELECTION, PRESETS, arms).figure_rows()
    assert [row.label for row in rows] == ["all correct: reference", "Top-2"] * 2
    assert [row.group for row in rows[1:3]] == [
        "test (the paper: MathV360K)",
        "out of distribution (the paper: MathVista)",
    ]
    assert rows[0].value == (0.0, 0.0, 0.0) and rows[0].reference is None
    mean, low, high = rows[1].value
    assert mean == pytest.approx(0.05) and 0.03 < low < mean < high < 0.07
    assert rows[1].reference == pytest.approx(0.022) and rows[3].reference == pytest.approx(0.02)


def test_a_single_seed_has_a_figure_without_intervals() -> None:
    arms = [Arm(preset=name, seed=0, summary=summary(50, 30)) for name in ("continuous_25", "top_2")]
    assert [row.value for row in build_table(SELECTION, PRESETS, arms).figure_rows()] == [(0.0, 0.0, 0.0)] * 4


def test_no_finished_arm_is_an_empty_table() -> None:
    assert build_table(SELECTION, PRESETS, []).rows == ()
