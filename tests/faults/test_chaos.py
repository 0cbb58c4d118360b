"""The chaos run itself: its measure of a curve, and one disturbed run from its start to its comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import succeed
from tests.faults.chaos import LOSS, deviation


def write_run(folder: Path, losses: dict[int, float], *more: dict) -> Path:
    folder.mkdir()
    lines = [{"step": step, LOSS: loss} for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    return folder


def test_a_curve_is_left_by_its_largest_step_and_by_lines_that_are_not_the_same(tmp_path):
    straight = write_run(tmp_path / "a", {1: 4.0, 2: 2.0, 3: 1.0}, {"step": 3, "val/recon": 9.0})
    assert deviation(straight, straight) == 0
    assert deviation(straight, write_run(tmp_path / "b", {1: 4.0, 2: 2.5, 3: 0.9})) == 0.25
    assert deviation(straight, write_run(tmp_path / "c", {1: 4.0, 3: 1.0})) == float("inf"), "a step is missing"
    twice = write_run(tmp_path / "d", {1: 4.0, 2: 2.0, 3: 1.0}, {"step": 3, LOSS: 1.0})
    assert deviation(straight, twice) == float("inf"), "a step is there twice"


@pytest.mark.slow
def test_one_disturbed_run(tmp_path):
    summary = tmp_path / "summary.json"
    succeed("-m", "tests.faults.chaos", "--minutes", 0.1, "--seed", 3, "--summary", summary, timeout=900)
    found = json.loads(summary.read_text())
    assert found["good"] == found["runs"] == 1
