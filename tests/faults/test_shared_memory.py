"""Too little shared memory is said before a run starts, or by the batch that finds no room; no batch is lost unseen."""

from __future__ import annotations

import functools
import multiprocessing.queues
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, EvalLoader, build_dataset
from data.loader import TrainLoader, worker_count
from data.shared_memory import PREFETCH, OutOfSharedMemory, Reading, check_room, processes_here, share
from runtime.errors import UserError
from tests.commands import environment
from tests.repository import ROOT
from tests.training.tiny_runs import launch_in_process, stage1, write_config

Usage = namedtuple("Usage", "total used free")
FULL = "unable to allocate shared memory(shm) for file </torch_7_8_9>: No space left on device (28)"


@pytest.fixture
def images(tmp_path) -> Path:
    for split, count in (("train", 8), ("val", 2)):
        for index in range(count):
            path = tmp_path / "images" / split / "one" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), index, dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def dataset(images):
    return build_dataset(DatasetConfig(type="folder", root=str(images), resolution=32), "train", 0)


def with_room(monkeypatch, num_bytes: int) -> None:
    monkeypatch.setattr("data.shared_memory.PLACE", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(64_000_000, 64_000_000 - num_bytes, num_bytes))


def test_what_two_loaders_need_is_counted(dataset, monkeypatch):
    one = 32 * 32 * 3 + 8 + 8  # pixels, label, index
    readings = [Reading(dataset, 16, 2), Reading(dataset, 4, 1), Reading(dataset, 1000, 0)]
    needed = 3 * one * (16 * (2 * PREFETCH + 1) + 4 * (PREFETCH + 1))
    with_room(monkeypatch, needed)
    check_room(readings, 3)
    with_room(monkeypatch, needed - 1)
    with pytest.raises(UserError) as told:
        check_room(readings, 3)
    line = str(told.value)
    assert "shared memory (/) has 64.0 MB, 1.5 MB free; 3 processes with 2 + 1 data workers need 1.5 MB" in line
    assert "--shm-size" in line and "experiment.num_workers" in line and len(line) < 300


def test_a_run_is_refused_before_anything_is_written(images, monkeypatch, capsys, tmp_path):
    data = {"type": "folder", "root": str(images), "resolution": 8}
    config = write_config(tmp_path / "tiny.yaml", stage1({"dataset": data, "experiment.num_workers": 2}))
    with_room(monkeypatch, 100)
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    assert ended.value.code == 2 and "error: shared memory (/) has 64.0 MB" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def no_room(tensor: torch.Tensor) -> None:
    raise RuntimeError(FULL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked with what is exchanged here")
@pytest.mark.parametrize("loader", [TrainLoader, EvalLoader])
def test_a_batch_without_room_is_an_error_of_one_line(loader, dataset, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    more = {"seed": 0} if loader is TrainLoader else {}
    with pytest.raises(OutOfSharedMemory) as told:
        next(iter(loader(dataset, 4, num_workers=1, **more)))
    line = str(told.value)
    assert line.startswith("shared memory (") and "too little for a batch of 0.0 MB: give it more" in line
    assert "Traceback" not in line and "\n" not in line


def test_other_failures_keep_their_names(monkeypatch):
    def fails(tensor: torch.Tensor) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fails)
    with pytest.raises(RuntimeError, match="something else"):
        share({"image": torch.zeros(1)})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked with what is exchanged here")
def test_a_batch_that_cannot_be_sent_is_not_waited_for(dataset, monkeypatch, capfd):
    """Whatever the reason: too many open files, a queue that breaks. The worker ends, which the loader notices."""

    original = multiprocessing.queues._ForkingPickler.dumps

    def broken(value: tuple) -> bytes:
        if isinstance(value[1], dict):  # not the numbers that the worker is asked for
            raise OSError(24, "Too many open files")
        return original(value)

    monkeypatch.setattr(multiprocessing.queues._ForkingPickler, "dumps", broken)
    batches = iter(TrainLoader(dataset, 4, seed=0, num_workers=1))
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(batches)
    assert "error: a data worker ends, a batch cannot be handed over: [Errno 24] Too many open files" in (
        capfd.readouterr().err
    )


def test_no_workers_need_none(dataset):
    assert worker_count(dataset, 0) == Reading(dataset, 4, 0).num_bytes() == 0
    assert worker_count(build_dataset(DatasetConfig(type="digits", resolution=8), "train", 0), 4) == 0


def test_processes_of_other_hosts_have_memory_of_their_own(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_here(64) == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert processes_here(64) == 64


@functools.cache
def can_mount() -> bool:
    script = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    unshare = shutil.which("unshare")
    return (
        unshare is not None and not subprocess.run([unshare, "-rm", "sh", "-c", script], capture_output=True).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount")
def test_a_run_with_one_megabyte(images, tmp_path):
    """For real: refused before it starts; and where only the loader notices, by a line."""
    data = {"type": "folder", "root": str(images), "resolution": 8}
    changes = {"dataset": data, "experiment.num_workers": 2, "experiment.batch_size": 2048}
    config = write_config(tmp_path / "tiny.yaml", stage1(changes))
    command = shlex.join([sys.executable, "main_stage1.py", "-m", str(config), "-r", str(tmp_path / "runs")])
    late = (
        "from data import *; "
        f"d = build_dataset(DatasetConfig(type='folder', root='{images}', resolution=32), 'train', 0); "
        "next(iter(TrainLoader(d, 2048, seed=0, num_workers=2)))"
    )
    script = f"mount -t tmpfs -o size=1m tmpfs /dev/shm; {command}; echo $?; {shlex.join([sys.executable, '-c', late])}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=300
    )
    refused, raised = [line for line in done.stderr.splitlines() if "shared memory (/dev/shm) has 1.0 MB" in line]
    assert done.stdout == "2\n" and refused.startswith("error: ") and not (tmp_path / "runs").exists()
    assert raised.startswith("data.shared_memory.OutOfSharedMemory: ")
