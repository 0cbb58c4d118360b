"""The background writer: training goes on, errors come back, what must stay stays, disks fill up."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from runtime import atomic
from runtime.errors import UserError
from tests.commands import run
from tests.training.checkpoint_files import load_checkpoint, save_checkpoint
from training.checkpoints import checkpoint_storage
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.checkpoints.checkpoint_writer import CheckpointWriter


def state(value: float) -> dict:
    return {"x": {"value": torch.full((50,), value)}}


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in complete_checkpoints(directory))


class SlowDisk:
    """Holds every write back until told; stands in for `save_file`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.go, self.begun = checkpoint_storage.save_file, threading.Event(), threading.Event()
        monkeypatch.setattr(checkpoint_storage, "save_file", self)

    def __call__(self, tensors, path):
        self.begun.set()
        assert self.go.wait(60)
        self.write(tensors, path)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    objects = state(1.0)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, objects)
        objects["x"]["value"].fill_(2.0)  # a training step, in place
        assert disk.begun.wait(60)
        writer.check()
        assert steps(tmp_path) == [], "nothing is there before it is complete"
        disk.go.set()
        writer.wait()
        assert load_checkpoint(tmp_path)["x"]["value"].eq(1.0).all()
        writer.save(2, objects)
    assert load_checkpoint(tmp_path)["x"]["value"].eq(2.0).all(), "the end waits for the last one"


def test_the_next_save_waits_for_the_one_before(tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, state(1.0))
        threading.Timer(0.2, disk.go.set).start()
        writer.save(2, state(2.0))
        assert steps(tmp_path)[0] == 1
    assert steps(tmp_path) == [1, 2]


def full(tensors, path):
    raise OSError(28, "No space left on device")


def test_an_error_in_the_background_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1.0))
    monkeypatch.setattr(checkpoint_storage, "save_file", full)
    done = 0
    with (
        pytest.raises(UserError, match="cannot write .*step_00000002: .*No space left"),
        CheckpointWriter(tmp_path) as writer,
    ):
        writer.save(2, state(2.0))
        while done < 10**7:
            writer.check()
            done += 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]
    assert threading.active_count() == 1 or not any(t.name == "checkpoint" for t in threading.enumerate())


@pytest.mark.parametrize("end", ["wait", "save", "close"])
def test_an_error_in_the_background_is_never_lost(end, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_storage, "save_file", full)
    writer = CheckpointWriter(tmp_path)
    writer.save(2, state(2.0))
    with pytest.raises(UserError, match="No space left"):
        {"wait": writer.wait, "save": lambda: writer.save(3, state(3.0)), "close": lambda: writer.__exit__(None)}[end]()


def test_another_error_is_not_hidden_by_that_of_the_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_storage, "save_file", full)
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path) as writer:
        writer.save(1, state(1.0))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_storage, "save_file", lambda tensors, path: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as raised:
        save_checkpoint(tmp_path, 1, state(1.0))
    assert "in _write" in str(raised.value)


def test_milestones_stay_beside_the_last_ones(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=2, keep_every=4) as writer:
        for step in range(1, 12):
            writer.save(step, state(step))
    assert steps(tmp_path) == [4, 8, 10, 11]
    save_checkpoint(tmp_path, 12, state(12), keep_last=1, keep_every=4)
    assert steps(tmp_path) == [4, 8, 12]
    save_checkpoint(tmp_path, 13, state(13), keep_last=1)
    assert steps(tmp_path) == [13]


def test_free_space_is_looked_at_before_anything_is_written(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1.0))
    (tmp_path / ".partial-step_00000009").mkdir()
    usage = type("Usage", (), {"free": 1_500_000})
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage)
    large = {"x": {"value": torch.zeros(1_000_000)}}
    for writer in (CheckpointWriter(tmp_path), CheckpointWriter(tmp_path, asynchronous=False)):
        with pytest.raises(UserError, match=r"step_00000002: it needs 4\.0 MB, 1\.5 MB are free on its disk"):
            writer.save(2, large)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"], "leftovers are cleared for their room"
    save_checkpoint(tmp_path, 2, state(2.0))
    assert steps(tmp_path) == [1, 2]


def test_a_write_that_the_system_cuts_off_is_one_line(tmp_path):
    """In the background, by a process that may not write more than 64 KiB per file."""
    program = (
        "import resource, sys, torch\n"
        "from runtime.errors import exit_on_user_error\n"
        "from training.checkpoints.checkpoint_writer import CheckpointWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "with exit_on_user_error(), CheckpointWriter(sys.argv[1]) as writer:\n"
        "    writer.save(1, {'x': {'small': torch.zeros(10)}})\n"
        "    writer.save(2, {'x': {'large': torch.zeros(10**6)}})\n"
    )
    done = run("-c", program, tmp_path)
    assert done.code == 2, done.err
    assert done.err.startswith("error: cannot write ")
    assert done.err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]
