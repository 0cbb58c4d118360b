"""The evaluation benchmark at toy size: its numbers are there and mean what they say."""

import pytest

from benchmarks.evaluation_speed import measure_frechet, measure_statistics


def test_statistics_count_all_features_and_measure_memory():
    row = measure_statistics(600, 16)
    assert (row["images"], row["dim"]) == (600, 16)
    assert row["seconds"] >= 0 and row["peak_extra_mb"] >= 0
    assert row["features_mb"] == pytest.approx(600 * 16 * 4 / 1e6, abs=0.1)


def test_both_ways_to_the_distance_agree():
    row = measure_frechet(1, dim=24)
    assert row["relative_difference"] < 1e-9
