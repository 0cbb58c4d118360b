"""Half a result is no result: cut-off sample folders are refused, torn files and leftovers are taken away."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data import DatasetConfig, build_dataset
from data.images.listing import UNFINISHED
from data.shards.packing import pack
from data.shards.shard_files import ShardFiles, _lock, sweep_copies
from rqstack.snapshots import appearing_folder
from runtime.atomic import sweep, write_whole
from runtime.errors import UserError
from runtime.npz import write_npz
from runtime.runlog import RunLog
from sampling.image_files import save_images
from scoring.image_source import open_source
from tests.training.tiny_runs import stage1, train, write_config

OLD = (1, 1)  # times of a file


def batches(count: int):
    for index in range(count):
        image_BCHW = torch.full((1, 3, 8, 8), index, dtype=torch.uint8)
        yield {"image": image_BCHW, "index": torch.tensor([index]), "label": torch.tensor([index % 2])}


def cut_off(directory: Path, file_format: str = "png") -> None:
    """A sampling run that is killed after 3 of 4,000 images."""
    saving = save_images(batches(9), directory, file_format, 4000, (8, 8))
    for _ in range(3):
        next(saving)
    (directory / "samples.png").write_bytes(b"")  # of an earlier version, which told sets by it


@pytest.mark.parametrize("where", [".", "images", ".."])
def test_a_cut_off_set_of_samples_is_refused_wherever_it_is_read(where, tmp_path):
    directory = tmp_path / "runs" / "samples"
    directory.mkdir(parents=True)
    cut_off(directory)
    said = r"runs/samples was not written to its end: 4 of 4,000 images are there|: 3 of 4,000 images are there"
    with pytest.raises(UserError, match=said):
        open_source(str(directory / where))


def test_nobody_trains_on_it_either(tmp_path):
    cut_off(tmp_path)
    with pytest.raises(UserError, match="was not written to its end"):
        build_dataset(DatasetConfig(type="folder", root=str(tmp_path), resolution=8), "train", 0)


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_a_whole_set_is_read(file_format, tmp_path):
    assert len(list(save_images(batches(9), tmp_path, file_format, 9, (8, 8)))) == 9
    assert not (tmp_path / UNFINISHED).exists()
    assert len(open_source(str(tmp_path))) == 9


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_torn_image_of_a_full_disk_is_taken_away_and_named(tmp_path, monkeypatch):
    saving = save_images(batches(9), tmp_path, "png", 9, (8, 8))
    next(saving)
    torn = tmp_path / "images" / "000001_class1.png"

    def half(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:7])
        full()

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(UserError, match=f"cannot write {torn}: .*No space left on device"):
        next(saving)
    monkeypatch.undo()
    assert not torn.exists() and (tmp_path / UNFINISHED).exists()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves nothing")
def test_an_archive_without_room_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    """Writing to a map of a file that the disk has no room for would kill the process."""
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot write .*\.npy: .*No space left on device; it needs 0.8 MB"):
        next(save_images(batches(1), tmp_path, "npz", 4000, (8, 8)))
    assert not list(tmp_path.glob(".*.npy"))


def test_a_torn_preview_is_taken_away_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_bytes", full)
    with RunLog(tmp_path, loggers=()) as log:
        assert log.log_images("grid", torch.zeros(3, 4, 4, dtype=torch.uint8), 1) is None
    assert f"{tmp_path}/samples/grid_00000001.png" in capsys.readouterr().err


def test_leftovers_go_when_nobody_has_touched_them_for_long(tmp_path):
    for name in (".partial-1-a", ".partial-2-b", "kept", ".other"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".partial-3-c").mkdir()
    for name in (".partial-1-a", ".partial-3-c", "kept", ".other"):
        os.utime(tmp_path / name, OLD)
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other", ".partial-2-b", "kept"]
    sweep(tmp_path / "nothing")


def test_leftovers_of_a_run_go_when_it_is_resumed(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1({"experiment.max_steps": 2}))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir
    left = [run / ".partial-1-config.yaml", run / "snapshots/.partial-2-best", run / "checkpoints/.partial-3-step_9"]
    left[0].write_text("x")
    left[1].mkdir()
    left[2].mkdir()
    train("stage1", "--resume", "-l", run, "experiment.max_steps=3")
    assert not [path for path in left if path.exists()]


def test_leftovers_of_archives_and_exported_models_go(tmp_path):
    for name in (".partial-1-ab-x.npz", ".partial-model-ab"):
        (tmp_path / name).mkdir() if "model" in name else (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, OLD)
    write_npz(tmp_path / "x.npz", {"a": np.zeros(1)})
    with appearing_folder(tmp_path / "model"):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "x.npz"]


def test_copies_of_shards_that_a_killed_process_left_go_at_the_next_start(tmp_path):
    left, busy = (tmp_path / f".partial-{number}-{number:024x}-9.tar" for number in (17, 18))
    for partial in (left, busy):
        partial.write_bytes(b"x")
    with _lock(tmp_path / f"{18:024x}-9.tar"):  # being fetched by another process
        sweep_copies(tmp_path)
    assert not left.exists() and busy.exists()
    assert ShardFiles(["a"], [1], tmp_path, 2).cache == tmp_path


def test_indexes_half_written_beside_shards_go(tmp_path):
    dataset = build_dataset(DatasetConfig(type="synthetic", resolution=8, num_samples=4), "train")
    pack(dataset, {}, tmp_path, 4)
    left = tmp_path / ".partial-7-train-000000.tar.index.npz"
    left.write_bytes(b"x")
    os.utime(left, OLD)
    build_dataset(DatasetConfig(type="shards", root=str(tmp_path), resolution=8), "train", 0)
    assert not left.exists()


def test_a_file_that_can_be_written_is(tmp_path):
    write_whole(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x" and time.time() - (tmp_path / "a").stat().st_mtime < 1000
