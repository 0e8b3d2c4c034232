"""Dots with intervals: every mark inside its frame, every text escaped, a standalone file that stands alone."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.evolve.dynamics import wilson
from mstar_engine.report.intervals import IntervalRow, interval_plot
from runs import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"
VALUE = st.floats(-1, 1)
ROWS = st.lists(
    st.tuples(
        st.text(max_size=60, alphabet=st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn", "Co"])),
        st.tuples(VALUE, VALUE, VALUE).map(sorted).map(lambda v: (v[1], v[0], v[2])),
        st.sampled_from(["", "reward", "method"]),
        st.one_of(st.none(), st.integers(0, 20)),
        st.one_of(st.none(), VALUE),
    ),
    min_size=1,
    max_size=9,
)


@given(ROWS, st.booleans(), st.sampled_from([360, 720]))
@settings(deadline=None)
def test_every_row_is_drawn_inside_the_frame(rows, percent, width):
    root = ElementTree.fromstring(interval_plot(rows, label="x", percent=percent, width=width))
    height = float(root.get("viewBox").split()[3])
    dots = [one for one in root.iter("circle") if "dot" in one.get("class")]
    whiskers = [one for one in root.iter("line") if "whisker" in one.get("class")]
    assert len(dots) == len(whiskers) == len(rows)
    for dot, whisker in zip(dots, whiskers, strict=True):
        assert 0 <= float(whisker.get("x1")) <= float(dot.get("cx")) <= float(whisker.get("x2")) <= width
        assert 0 <= float(dot.get("cy")) <= height
    diamonds = [one for one in root.iter("path")]
    given_references = sum(row[4] is not None for row in rows)
    assert len(diamonds) == given_references + bool(given_references)


def test_rows_of_a_group_stand_together_in_its_colour():
    rows = [("a", (0.5, 0.4, 0.6), "one"), ("b", (0.5, 0.4, 0.6), "two"), IntervalRow("c", wilson(5, 10), "one")]
    root = ElementTree.fromstring(interval_plot(rows, label="x"))
    assert [t.text for t in root.iter("text") if t.get("class") in ("group", "label")] == ["one", "a", "c", "two", "b"]
    assert [dot.get("class") for dot in root.iter("circle")] == ["dot c0", "dot c0", "dot c1"]
    assert [dot.get("class") for dot in ElementTree.fromstring(
        interval_plot([("a", (0.5, 0.4, 0.6), "", 10)], label="x")).iter("circle")] == ["dot c2"]  # fmt: skip


def test_the_readings_stand_beside_the_dots():
    svg = interval_plot([("a", wilson(62, 100), "", None, 0.5)], label="x", reference="after warm-up")
    assert "62.0%" in svg and "52.2 to 70.9" in svg and "after warm-up" in svg and "<title>50.0%</title>" in svg
    assert "0.25" in interval_plot([("a", (0.25, 0.2, 0.3))], label="x", percent=False)


@pytest.mark.parametrize("width", [360, 720])
@pytest.mark.parametrize("standalone", [False, True])
def test_hostile_texts_are_escaped(width, standalone):
    svg = interval_plot(
        [(HOSTILE, wilson(1, 2), HOSTILE, None, 0.5)],
        label=f'">{HOSTILE}',
        standalone=standalone,
        width=width,
        reference=HOSTILE,
    )
    ElementTree.fromstring(svg)
    assert "<script" not in svg and "<img" not in svg


def test_a_standalone_figure_is_a_file_of_its_own():
    svg = interval_plot([("greedy", wilson(62, 100))], label="Ablation <1>", standalone=True)
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("width") == "720"
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in style and "url(" not in style and "@import" not in style
    assert root.find(f"{SVG}text").text == "Ablation <1>"
    assert float(root.find(f"{SVG}rect").get("height")) == float(root.get("height"))


def test_no_rows():
    assert "Nothing measured yet" in interval_plot([], label="x")
    with pytest.raises(ValueError, match=r"interval_plot 'x': rows=\[\]"):
        interval_plot([], label="x", standalone=True)
