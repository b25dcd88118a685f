"""The picture of a bench is an SVG that says what was measured."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from jetsocket.cli.plot import draw, ticks


def test_it_is_an_svg_with_the_percentiles() -> None:
    picture = draw([number / 1000 for number in range(1, 1001)], "ws://h/?a=1&b=<2>")
    root = ET.fromstring(picture)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "ws://h/?a=1&b=<2>" in texts
    assert {"p50 500 ms", "p90 900 ms", "p99 990 ms"} <= set(texts)
    assert "99.9" in texts and "99.95" not in texts  # of a thousand replies, no more can be said


def test_the_curve_rises_and_stays_inside() -> None:
    root = ET.fromstring(draw([0.001, 0.002, 0.2], "x"))
    (curve,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert all(0 <= x <= 760 and 0 <= y <= 400 for x, y in points)


@pytest.mark.parametrize("times", [[0.5], [0.0, 0.0], [1e-7], [3000.0, 1.0]])
def test_of_few_or_strange_times(times: list[float]) -> None:
    ET.fromstring(draw(times, "x"))


@pytest.mark.parametrize(
    ("most", "last"), [(0.0, 0), (0.001, 0.001), (0.0123, 0.0125), (0.99, 1.0), (7, 8), (1000, 1000)]
)
def test_ticks_are_round_and_reach_far_enough(most: float, last: float) -> None:
    found = ticks(most)
    assert found[0] == 0 and 1 <= len(found) <= 8
    assert found[-1] == pytest.approx(last, abs=1e-8)
