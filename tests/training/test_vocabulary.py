"""One name for one quantity, and files of earlier releases under the names of today."""

from __future__ import annotations

import json

from training.vocabulary import folded, read_run


def test_numbers_of_single_depths_become_lists_with_their_mean():
    metrics = {"loss": 5.0, "loss_depth_1": 6.0, "loss_depth_0": 4.0, "nll_depth_0": 1.0, "nll_depth_1": 3.0, "lr": 0.1}
    assert folded(metrics) == {
        "loss": 5.0,
        "lr": 0.1,
        "loss_by_depth": [4.0, 6.0],
        "nll": 2.0,
        "nll_by_depth": [1.0, 3.0],
    }


def test_metrics_of_an_earlier_release_are_read(tmp_path):
    lines = [
        {"step": 1, "train/loss_depth_0": 2.0, "train/loss_depth_1": None, "timing": {"mfu": 0.1}},
        {"step": 1, "val/lpips": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(tmp_path) == [
        {"step": 1, "timing": {"mfu": 0.1}, "train/loss_by_depth": [2.0, None]},
        {"step": 1, "val/loss_perceptual": 0.5},
    ]
    assert read_run(tmp_path / "none") == []
