"""Inline SVG plots."""

import xml.etree.ElementTree as ET

import pytest

from demo.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_plot


def _points(svg: str) -> list[list[tuple[float, float]]]:
    lines = [element for element in ET.fromstring(svg).iter() if element.tag.endswith("polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines]


def test_corners_of_the_data_are_corners_of_the_plot():
    (points,) = _points(line_plot("t", {"a": [(0, 1.0), (10, 3.0)]}))
    assert points == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_log_scale_puts_the_geometric_mean_in_the_middle():
    (points,) = _points(line_plot("t", {"a": [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0)]}, log_y=True))
    assert len(points) == 3
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.1)


def test_one_line_and_one_legend_entry_for_each_curve():
    svg = line_plot("a < b", {"x & y": [(0, 1)], "z": [(0, 2)]})
    assert len(_points(svg)) == 2
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"a < b", "x & y", "z"} <= set(texts)


def test_nothing_to_plot_gives_nothing():
    assert line_plot("t", {"a": []}) == ""
