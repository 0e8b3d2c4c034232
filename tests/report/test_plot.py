"""Plots: well-formed SVG whose every mark lies inside its frame."""

import itertools
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.report.plot import Point, Series, line_plot

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
