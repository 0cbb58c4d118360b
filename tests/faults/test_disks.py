"""A disk that is full or read-only, data that vanish: one line, exit code 2, and the last checkpoint intact."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny_runs import launch_in_process, only_run, stage1, train, write_config
from training.checkpoints.checkpoint_directories import find_sound_checkpoint

PLAN = {"experiment.max_steps": 6, "experiment.save_steps": 2, "experiment.test_steps": 6}


def fails(capsys, *flags: object) -> str:
    """The error line of an entry script that must end in exit code 2 without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", *flags)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in printed
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_metrics_that_cannot_be_written(number, monkeypatch, capsys, tmp_path):
    """From the fourth step on nothing more can be written to the run's log."""
    from runtime.runlog import RunLog

    original = RunLog._write_metrics

    def write(self, step, *rest):
        if step >= 4:
            raise OSError(number, "the disk")
        original(self, step, *rest)

    monkeypatch.setattr(RunLog, "_write_metrics", write)
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    assert "the disk" in fails(capsys, "-m", config, "-r", tmp_path / "runs")
    monkeypatch.undo()
    run_dir = only_run(tmp_path / "runs")
    assert find_sound_checkpoint(run_dir).name == "step_00000002"
    assert train("stage1", "--resume", "-l", run_dir).start.step == 2


def test_data_that_vanish(monkeypatch, capsys, tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 24), ("val", 4)):
        for index in range(count):
            path = root / split / "one" / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(path)
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1(PLAN | {"dataset": {"type": "folder", "root": str(root), "resolution": 8, "max_corrupt": 5}}),
    )
    from training.stages.stage1 import Stage1

    original = Stage1.train_step

    def train_step(self, micro_batches, step, *args):
        if step == 3:
            shutil.rmtree(root)
        return original(self, micro_batches, step, *args)

    monkeypatch.setattr(Stage1, "train_step", train_step)
    line = fails(capsys, "-m", config, "-r", tmp_path / "runs")
    assert str(root) in line
    assert find_sound_checkpoint(only_run(tmp_path / "runs")).name == "step_00000002"


def test_a_result_path_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    assert "cannot create a run directory" in fails(capsys, "-m", config, "-r", tmp_path / "file" / "runs")
    assert not Path(tmp_path / "runs").exists()
