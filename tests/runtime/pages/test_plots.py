"""Plots: what of the data is drawn where, and that a page can show it as its own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from runtime.pages.plots import BarPanel, LinePlot, save_bars


def texts(svg: str) -> list[str]:
    return [element.text for element in ET.fromstring(svg.replace("xlink:", "")).iter("text")]


def paths(svg: str) -> list[list[tuple[float, float]]]:
    """The curves: thick lines without end caps of axes."""
    curves = re.findall(r'<path d="([^"]*)"[^>]*stroke-width: 1\.4', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)] for path in curves]


def test_a_plot_is_part_of_the_page_and_loads_nothing():
    svg = LinePlot("losses", {"a < b": [(0, 1.0), (10, 3.0)], "$x$": [(0, 2.0), (10, 1.0)]}).svg()
    assert svg.startswith('<svg class="plot" role="img" aria-label="losses: a &lt; b, $x$"')
    assert "://" not in svg and "<?xml" not in svg and "<metadata" not in svg
    assert "currentColor" in svg and "#010203" not in svg
    assert {"losses", "a < b", "$x$", "step"} <= set(texts(svg))
    assert svg == LinePlot("losses", {"a < b": [(0, 1.0), (10, 3.0)], "$x$": [(0, 2.0), (10, 1.0)]}).svg()


def test_log_scale_puts_the_geometric_mean_in_the_middle_and_leaves_out_what_has_no_logarithm():
    plot = LinePlot("t", {"a": [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0)], "b": [(0, -1.0)]}, log_y=True)
    assert list(plot.shown()) == ["a"]
    (points,) = paths(plot.svg())
    assert len(points) == 3
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.1)


def test_a_narrow_log_axis_has_numbers_too():
    svg = LinePlot("t", {"a": [(0, 0.62), (1, 0.69)]}, log_y=True).svg()
    assert sum(re.fullmatch(r"0\.6\d*", text or "") is not None for text in texts(svg)) >= 3


def test_events_stand_in_the_legend_once():
    svg = LinePlot("t", {"a": [(0, 1.0), (9, 2.0)]}, events={"resumed": [3, 5], "nothing": []}).svg()
    assert texts(svg).count("resumed") == 1 and "nothing" not in texts(svg)


def test_every_curve_is_in_the_legend_however_long_its_name_and_one_alone_has_none():
    points = [(0, 1.0), (9, 2.0)]
    for names in (["a", "b"], ["a", "b", "c", "d", "e"], ["a name that is long", "another one", "a third"]):
        assert set(names) <= set(texts(LinePlot("t", dict.fromkeys(names, points)).svg()))
    assert "a" not in texts(LinePlot("t", {"a": points}).svg())


def test_names_that_two_columns_would_cut_off_stand_below_each_other():
    names = ["digits/2026-11-28_20-03-36 " + kind for kind in ("training", "validation", "unigrams, validation")]
    svg = LinePlot("t", dict.fromkeys(names, [(0, 1.0), (9, 2.0)])).svg()
    places = re.findall(r"translate\(([-\d.]+) [-\d.]+\)[^>]*>digits|x=\"([-\d.]+)\"[^>]*>digits", svg)
    assert len(places) == 3 and len(set(places)) == 1


def test_a_curve_may_have_a_colour_of_its_own():
    points = {"a": [(0, 1.0), (9, 2.0)]}
    drawn = [LinePlot("t", points, colors=colors).svg() for colors in ({}, {"a": 1})]
    assert [("#1f77b4" in svg, "#ff7f0e" in svg) for svg in drawn] == [(True, False), (False, True)]


def test_nothing_to_plot_gives_nothing():
    assert LinePlot("t", {"a": []}).svg() == ""


def test_bars_have_lengths_in_proportion(tmp_path):
    save_bars(tmp_path / "bars.png", "title", ["a", "b", "c"], [BarPanel("panel", [1.0, 0.5, None], "{:.1f}")])
    image = Image.open(tmp_path / "bars.png").convert("RGB")
    blue = [sum(image.getpixel((x, y)) == (31, 119, 180) for x in range(image.width)) for y in range(image.height)]
    lengths = [length for length, before in zip(blue, [0, *blue]) if length > before + 1]
    assert lengths[0] > 100 and lengths[0] == pytest.approx(2 * lengths[-1], rel=0.05)
