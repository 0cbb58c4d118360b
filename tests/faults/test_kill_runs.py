"""A small part of `kill_runs.py`: a rank in the middle, a rank while a checkpoint is written, a data worker."""

from __future__ import annotations

import random

import pytest

from tests.faults.kill_runs import Ranks, compare, config_at, kill_once
from tests.training.tiny_runs import only_run


@pytest.mark.slow
def test_killed_runs_end_like_an_untouched_one(tmp_path):
    config = config_at(tmp_path)
    ranks = Ranks(tmp_path / "printed", "-m", config, "-r", tmp_path / "straight")
    assert [code for code, _ in ranks.finish()] == [0, 0]
    straight = only_run(tmp_path / "straight")
    for victim, aim_at_saving in (("rank 0", True), ("worker", False)):
        results = tmp_path / victim.replace(" ", "")
        assert kill_once(results, config, victim, random.Random(1), aim_at_saving).victim == victim
        assert set(compare(straight, only_run(results)).values()) == {True}


@pytest.mark.slow
def test_another_run_is_told_apart(tmp_path):
    config = config_at(tmp_path)
    for seed in "01":
        ranks = Ranks(tmp_path / f"printed{seed}", "-m", config, "-r", tmp_path / seed, "--seed", seed)
        assert [code for code, _ in ranks.finish()] == [0, 0]
    equal = compare(*(only_run(tmp_path / seed) for seed in "01"))
    assert not any(equal[part] for part in ("weights", "codebook", "average", "optimizer", "metrics"))
