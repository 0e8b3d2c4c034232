"""Plots: well-formed SVG whose every mark lies inside its frame."""

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
