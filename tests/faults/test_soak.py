"""What counts as growth in `soak.py`, and a minute of it."""

from __future__ import annotations

import json
import math
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands import start
from tests.faults.soak import Run, grows, growth

HOURS = np.arange(1400) * 5 / 3600


def sawtooth(period: int = 37) -> np.ndarray:
    return 300 + np.arange(len(HOURS)) % period + np.random.default_rng(0).normal(0, 3, len(HOURS))


def test_what_goes_up_and_down_does_not_grow():
    line = growth(HOURS, sawtooth())
    assert line["low"] < 0 < line["high"]
    assert not grows(line)


@pytest.mark.parametrize("per_hour", [2.0, 20.0])
def test_a_leak_grows_by_its_size(per_hour):
    line = growth(HOURS, sawtooth() + per_hour * HOURS)
    assert line["low"] < per_hour < line["high"]
    assert grows(line)


def test_what_shrinks_or_stands_still_does_not_grow():
    assert not grows(growth(HOURS, sawtooth() - 20 * HOURS))
    still = growth(HOURS, np.full(len(HOURS), 4.0))
    assert (still["per_hour"], still["low"], still["high"]) == (0, 0, 0)


def test_one_descriptor_in_an_hour_is_seen():
    assert grows(growth(HOURS, 180 + np.floor(HOURS)))


def test_two_moments_give_no_line():
    with pytest.raises(ValueError, match="2 of 20 stretches have a value"):
        growth([0.0, 1.0], [1.0, 2.0])


def test_a_folder_that_is_renamed_while_it_is_looked_at(tmp_path, monkeypatch):
    for name in ("kept/a", "kept/samples/b.png", "checkpoints/.partial-1/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir = os.scandir

    def renamed(path):
        if ".partial" in os.fspath(path):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", renamed)
    run = Run("x", tmp_path, [SimpleNamespace(pid=os.getpid(), exitcode=None)])
    measured = run.measure()
    assert measured["files"] == 1
    assert measured["memory"] > 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_minute_of_it_stopped_early(tmp_path):
    soak = start(
        "-m", "tests.faults.soak", "--minutes", 60, "--folder", tmp_path / "runs", "--summary", tmp_path / "soak.json"
    )
    notes = tmp_path / "runs/samples.jsonl"
    lines: list[str] = []
    try:  # on a busy machine a minute is few samples
        while (len(lines) < 40 or json.loads(lines[-1])["hours"] * 60 < 1) and soak.poll() is None:
            time.sleep(1)
            lines = notes.read_text().splitlines() if notes.exists() else []
    finally:
        soak.terminate()
        printed = soak.communicate(timeout=700)
    assert (tmp_path / "soak.json").exists(), printed
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found == json.loads(printed[0].splitlines()[-1])
    assert 1 <= found["minutes"] < 60
    assert found["exit_codes"] == {"stage1": [75, 75], "stage2": [75]}
    assert min(found["steps"].values()) > 0
    series = found["series"]
    assert all(math.isfinite(value) for line in series.values() for value in line.values())
    assert series["stage1 processes"]["last"] >= 4
    for run in ("stage1", "stage2"):  # memory needs longer than a minute to tell
        assert series[f"{run} shared memory files"]["last"] == 0
        for name in ("descriptors", "threads", "files"):
            assert series[f"{run} {name}"]["last"] < series[f"{run} {name}"]["first"] * 1.2, name
