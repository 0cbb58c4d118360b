"""Snapshots of a run: its steps come and go, the best one stays until there is a better one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runtime.errors import UserError
from runtime.step_directories import BEST, complete_steps
from training.checkpoints.snapshot_writer import SnapshotWriter, discard_best_after


def writer(folder: Path) -> SnapshotWriter:
    return SnapshotWriter(
        folder, {"seed": 3}, {"stage": "stage1", "seed": 3}, {"words.json": '{"cat": 1}'}, keep_last=2
    )


def progress(step: int) -> dict[str, object]:
    return {"step": step, "dataset": "digits"}


def weights(value: float) -> tuple[dict[str, torch.Tensor], None]:
    return {"w": torch.full((2,), value)}, None


def test_the_last_steps_stay_and_say_what_they_are(tmp_path):
    for step in (10, 20, 30):
        writer(tmp_path).save(weights(step), progress(step), {"nll": 0.5})
    assert [path.name for path in complete_steps(tmp_path)] == ["step_00000030", "step_00000020"]
    metadata = json.loads((tmp_path / "step_00000030" / "metadata.json").read_text())
    assert metadata.pop("sha256").keys() == {"model.safetensors"}
    assert metadata == {"step": 30, "dataset": "digits", "stage": "stage1", "seed": 3, "metrics": {"nll": 0.5}}
    assert (tmp_path / "step_00000030" / "words.json").read_text() == '{"cat": 1}'


def test_the_best_one_is_no_step_and_knows_its_reason(tmp_path):
    snapshots = writer(tmp_path)
    assert snapshots.best_reason() == {}
    for step, value in ((10, 2.0), (20, 1.0)):
        snapshots.save_best(weights(step), progress(step), {"fid": value}, {"metric": "fid", "value": value})
        assert snapshots.best_reason() == {"metric": "fid", "value": value}
    for step in (30, 40, 50):
        snapshots.save(weights(step), progress(step), {})
    assert json.loads((tmp_path / BEST / "metadata.json").read_text())["step"] == 20


def test_a_best_one_of_a_later_step_is_given_up(tmp_path):
    writer(tmp_path).save_best(weights(1.0), progress(20), {}, {"metric": "fid", "value": 1.0})
    discard_best_after(tmp_path, 20)
    assert (tmp_path / BEST).is_dir()
    discard_best_after(tmp_path, 19)
    assert not (tmp_path / BEST).exists()
    discard_best_after(tmp_path, 19)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    raw, good = {"w": torch.tensor([1.0, value]), "n": torch.tensor([3])}, weights(1.0)[0]
    snapshots = writer(tmp_path)
    snapshots.check((good, good), 7)
    with pytest.raises(UserError, match="the weights after step 7 are not finite: w;"):
        snapshots.check((raw, None), 7)
    with pytest.raises(UserError, match="the averaged weights after step 7 are not finite: w;"):
        snapshots.check((good, raw), 7)
    with pytest.raises(UserError, match="not finite: w;"):
        snapshots.save_best((raw, None), progress(7), {}, {"metric": "fid", "value": 1.0})
    assert list(tmp_path.iterdir()) == []
