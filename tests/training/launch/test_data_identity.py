"""A resumed run finds the images it was begun with, and stage 2 does not validate on what stage 1 was trained on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from runtime.errors import UserError
from tests.training.tiny_runs import session, stage1, stage2, train, write_config

LINE_LIMIT = 300


@pytest.fixture
def images(tmp_path):
    for number in range(40):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def dataset(images, **settings):
    return {"dataset": {"type": "folder", "root": str(images), "resolution": 8, "transforms": "none", **settings}}


@pytest.fixture
def stage1_run(images, tmp_path):
    """A run of one step with its checkpoint and snapshot."""
    steps = {"experiment.max_steps": 1, "experiment.save_steps": 1}
    config = write_config(tmp_path / "one.yaml", stage1(dataset(images) | steps))
    return train("stage1", "-m", config, "-r", tmp_path / "one").run_dir


def resume(run, *words):
    resumed = session("stage1", "--resume", "-l", run, "experiment.max_steps=2", *words)
    resumed.close()
    return resumed


def start_stage2(images, run, tmp_path, *words, **settings):
    config = write_config(tmp_path / "two.yaml", stage2(dataset(images, **settings) | {"arch.vocab_size_cond": 2}))
    started = session("stage2", "-m", config, "-r", tmp_path / "two", "-v", run, *words)
    started.close()
    return started


def forget(run, file):
    """The run as one of before, that says nothing about its data."""
    for path in run.glob(file):
        content = json.loads(path.read_text())
        assert content.get("meta", content).pop("data")
        path.write_text(json.dumps(content))


def test_a_resumed_run_finds_its_images_wherever_they_lie(stage1_run, images, tmp_path):
    resume(stage1_run)
    images.rename(tmp_path / "moved")
    resume(stage1_run, f"dataset.root={tmp_path / 'moved'}")


@pytest.mark.parametrize("change", ["removed", "added", "other split"])
def test_a_run_is_not_resumed_on_other_images_without_being_told(stage1_run, images, caplog, change):
    words = ["dataset.split_seed=3"] if change == "other split" else []
    if change == "removed":
        (images / "a" / "00.png").unlink()
    elif change == "added":
        shutil.copy(images / "a" / "00.png", images / "b" / "new.png")
    with pytest.raises(UserError, match="the images are not those of the run .*dataset.accept_changed=true") as error:
        resume(stage1_run, *words)
    message = str(error.value).replace(str(stage1_run), "runs/one")
    assert "\n" not in message and len(message) < LINE_LIMIT
    assert ("the run has seen" in message) == (change == "other split")
    resumed = resume(stage1_run, *words, "dataset.accept_changed=true")
    assert len(resumed.data.warnings) == 1 and "(accepted)" in resumed.data.warnings[0]


def test_stage2_does_not_validate_on_what_stage1_was_trained_on(stage1_run, images, tmp_path):
    assert start_stage2(images, stage1_run, tmp_path).data.warnings == []
    assert start_stage2(images, stage1_run, tmp_path, val_fraction=0.05).data.warnings == []
    for settings in ({"split_seed": 3}, {"val_fraction": 0.5}):
        with pytest.raises(UserError, match="stage 1 was trained on about .*% of .*dataset.accept_seen=true") as error:
            start_stage2(images, stage1_run, tmp_path, **settings)
        assert "\n" not in str(error.value) and len(str(error.value)) < LINE_LIMIT
    told = start_stage2(images, stage1_run, tmp_path, "dataset.accept_seen=true", split_seed=3)
    assert "(accepted)" in told.data.warnings[0]


def test_nothing_is_written_before_the_refusal(stage1_run, images, tmp_path):
    with pytest.raises(UserError):
        start_stage2(images, stage1_run, tmp_path, split_seed=3)
    assert not (tmp_path / "two").exists()


def test_other_images_than_those_of_stage1_are_no_concern(stage1_run, images, tmp_path):
    others = tmp_path / "others"
    for path in images.rglob("*.png"):
        (others / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, others / path.parent.name / f"other_{path.name}")
    assert start_stage2(others, stage1_run, tmp_path, split_seed=3).data.warnings == []


def test_runs_of_before_do_not_mix_in_silence(stage1_run, images, tmp_path):
    forget(stage1_run, "snapshots/*/metadata.json")
    (warning,) = start_stage2(images, stage1_run, tmp_path).data.warnings
    assert "stage 1 does not say what it was trained on" in warning


def test_a_resumed_run_of_before_says_that_other_images_were_held_out(stage1_run, monkeypatch):
    progress = {"step": 1, "images_seen": 4, "dataset": "folder"}
    monkeypatch.setattr("training.launch.resuming.read_progress", lambda path: progress)
    with pytest.raises(UserError, match="begun when other validation images were held out; .*accept_changed=true"):
        resume(stage1_run)
    resume(stage1_run, "dataset.accept_changed=true")
