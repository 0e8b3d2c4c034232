"""Plots: well-formed SVG whose every mark lies inside its frame."""

import itertools
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.report.plot import Mark, Point, Series, both_widths, line_plot

VALUES = st.floats(0, 1)
POINTS = st.lists(st.tuples(VALUES, VALUES, VALUES).map(sorted), min_size=1, max_size=12).map(
    lambda rows: [Point(x, mid, low, high) for x, (low, mid, high) in enumerate(rows)]
)


@given(st.lists(POINTS, min_size=1, max_size=3), st.booleans())
@settings(deadline=None)
def test_everything_is_inside_the_frame(lines, percent):
    series = [Series(f"line {i}", "first", points) for i, points in enumerate(lines)]
    root = ElementTree.fromstring(line_plot(series, label="x", percent=percent, width=400, height=200))
    for circle in root.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= 400 and 0 <= float(circle.get("cy")) <= 200
    for polygon in root.iter("polygon"):
        for pair in polygon.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 400 and 0 <= y <= 200
    assert len(list(root.iter("circle"))) == sum(map(len, lines))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@settings(deadline=None)
def test_any_scale(low, spread):
    points = [Point(1, low), Point(2, low + spread)]
    ElementTree.fromstring(line_plot([Series("a", "first", points)], label="x", percent=False))


def test_labels_are_escaped_and_emptiness_is_said():
    svg = line_plot([Series('<b>"', "first", [Point(1, 0.5, 0.4, 0.6)])], label='"><script>', percent=True)
    ElementTree.fromstring(svg)
    assert "<script>" not in svg and "<b>" not in svg
    assert "Nothing measured yet" in line_plot([Series("a", "first", [])], label="x", percent=True)


@given(st.lists(POINTS, min_size=2, max_size=4))
@settings(deadline=None)
def test_no_end_label_covers_another_or_leaves_the_frame(lines):
    names = ["Pass@8", "Reward-Pass@2", "greedy", "W" * 13]
    series = [Series(name, "first", points) for name, points in zip(names, lines, strict=False)]
    root = ElementTree.fromstring(line_plot(series, label="x", percent=True))
    ends = [
        (float(text.get("x")), float(text.get("y")), text.text)
        for text in root.iter("text")
        if "end" in text.get("class")
    ]
    heights = sorted(y for _, y, _ in ends)
    assert all(below - above >= 14.9 for above, below in itertools.pairwise(heights))
    # 8.8 units a letter hold the widest font that report.css sets on labels.
    assert all(0 <= y <= 280 and x + 8.8 * len(words) <= 720 for x, y, words in ends)


@given(st.lists(POINTS, min_size=1, max_size=9), st.sampled_from([380, 920]))
@settings(deadline=None)
def test_names_at_the_ends_of_many_lines_are_apart(lines, width):
    series = [Series(str(i + 1), f"c{i}", points, band=False) for i, points in enumerate(lines)]
    svg = line_plot(series, label="x", percent=True, width=width, height=260, ends="name")
    root = ElementTree.fromstring(svg)
    ends = [(t.get("x"), float(t.get("y"))) for t in root.iter("text") if "end" in t.get("class")]
    assert len(ends) == len(lines) and "<polygon" not in svg
    for (x, y), (other, below) in itertools.combinations(ends, 2):
        assert x != other or abs(y - below) >= 14.9


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-1, 1), st.booleans()), min_size=1, max_size=9), st.floats(0, 3))
@settings(deadline=None)
def test_another_axis_with_marks(rows, at):
    points = [Point(x, y, y - 0.1, y + 0.1, weak) for x, y, weak in sorted(rows)]
    curve = Series("model", "second", points, "curve")
    marks = [Mark(at, "<chosen>", strong=True), Mark(1.0, "before"), Mark(-0.2, "zero", across=True), Mark(0.5)]
    svg = line_plot(
        [curve, Series("arms", "first", points, "dots")],
        label="x",
        percent=True,
        width=300,
        height=210,
        axis="temperature",
        marks=marks,
        ends="none",
    )
    root = ElementTree.fromstring(svg)
    whiskers = [one for one in root.iter("line") if one.get("class").startswith("whisker first")]
    assert len(list(root.iter("circle"))) == len(whiskers) == len(rows)
    assert [one.get("class").endswith("weak") for one in root.iter("circle")] == [p.weak for p in points]
    for one in root.iter("line"):
        assert all(0 <= float(one.get(x)) <= 300 for x in ("x1", "x2"))
        assert all(0 <= float(one.get(y)) <= 210 for y in ("y1", "y2"))
    said = {text.text: text for text in root.iter("text")}
    assert {"<chosen>", "before", "zero", "temperature"} <= set(said) and "iteration" not in svg
    assert float(said["before"].get("y")) < float(said["<chosen>"].get("y"))


def test_shared_bounds_hold_the_scale():
    one = [Series("a", "first", [Point(1, 0.5), Point(2, 0.6)])]
    svg = line_plot(one, label="x", percent=True, bounds=(0.0, 1.0))
    assert ">0%<" in svg and ">100%<" in svg and ">0%<" not in line_plot(one, label="x", percent=True)


def test_a_page_has_a_plot_for_each_width():
    svg = both_widths(lambda w, h: line_plot([Series("a", "first", [Point(1, 0.5)])], label="x", percent=True, width=w))
    assert svg.count("<svg") == 2 and 'class="at-wide"' in svg and 'class="at-narrow"' in svg
