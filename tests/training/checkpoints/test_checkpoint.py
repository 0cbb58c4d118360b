"""Checkpoints: exact, complete or absent, checked by hash, old ones removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runtime.errors import UserError
from runtime.step_directories import discard_after
from tests.training.checkpoint_files import load_checkpoint, save_checkpoint
from training.checkpoints import checkpoint_storage
from training.checkpoints.checkpoint_directories import (
    complete_checkpoints,
    find_latest_checkpoint,
    find_sound_checkpoint,
)
from training.checkpoints.checkpoint_restoring import restore_checkpoint


class Run:
    """A small network with everything a checkpoint must carry for it."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, amsgrad=True)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            self.optimizer.step()

    @property
    def objects(self) -> dict:
        return {"model": self.model, "optimizer": self.optimizer}


def equal_states(one: Run, other: Run) -> bool:
    states = [[run.model.state_dict(), run.optimizer.state_dict()["state"]] for run in (one, other)]
    flat = [torch.cat([value.flatten().double() for value in _tensors(state)]) for state in states]
    return torch.equal(*flat)


def _tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [tensor for value in values for tensor in _tensors(value)]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def save_steps(run_dir: Path, *steps: int, keep_last: int | None = None) -> None:
    for step in steps:
        save_checkpoint(run_dir / "checkpoints", step, {"x": {"value": torch.tensor(step)}}, keep_last=keep_last)


def test_training_goes_on_bit_for_bit(tmp_path):
    straight, stopped, resumed = Run(), Run(), Run(seed=9)
    straight.train(0, 6)
    stopped.train(0, 3)
    save_checkpoint(tmp_path / "checkpoints", 3, stopped.objects, {"images_seen": 12})
    assert restore_checkpoint(tmp_path, resumed.objects) == {"step": 3, "images_seen": 12}
    assert equal_states(resumed, stopped)
    moment = resumed.optimizer.state_dict()["state"][0]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last), "fused optimizers need the parameter's layout"
    resumed.train(3, 6)
    assert equal_states(resumed, straight)


def test_what_is_written(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", 1000, {"model": Run().model, "other": {"a": 1}})
    assert path == tmp_path / "checkpoints" / "step_00001000"
    names = sorted(file.name for file in path.iterdir())
    assert names == ["COMPLETE", "index.json", "manifest.json", "rank_00000.safetensors", "state.json"]
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["meta"], loaded["other"]) == (1000, {}, {"a": 1})


def test_the_newest_complete_one_is_taken(tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    save_steps(tmp_path, 5, 100, 20)
    (tmp_path / "checkpoints" / "step_00000200").mkdir()
    (tmp_path / "checkpoints" / ".partial-step_00000300").mkdir()
    for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "step_00000100"):
        assert find_latest_checkpoint(place).name == "step_00000100"
    assert load_checkpoint(tmp_path)["x"]["value"].item() == 100
    assert find_latest_checkpoint(tmp_path / "checkpoints" / "step_00000200") is None
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        load_checkpoint(tmp_path / "checkpoints" / "step_00000200")


def test_old_ones_and_leftovers_are_removed(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / ".partial-step_00000009").mkdir()
    (tmp_path / "checkpoints" / "step_00000008").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    save_steps(tmp_path, 3, 4, keep_last=2)
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == ["notes", "step_00000003", "step_00000004"]


@pytest.mark.parametrize(("keep_last", "left"), [(1, [150]), (2, [150, 300]), (3, [150, 200, 300])])
def test_the_one_just_written_stays_beside_larger_steps_of_another_trajectory(tmp_path, keep_last, left):
    save_steps(tmp_path, 100, 200, 300)
    save_steps(tmp_path, 150, keep_last=keep_last)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"step_{step:08d}" for step in reversed(left)]


def test_what_lies_beyond_the_resumed_step_is_discarded(tmp_path):
    save_steps(tmp_path, 100, 200, 300)
    directory = tmp_path / "checkpoints"
    for name in ("step_00000400", "step_backup", "notes"):
        (directory / name).mkdir()
    (directory / "step_backup" / "COMPLETE").touch()
    assert discard_after(directory, 300) == []
    assert [path.name for path in discard_after(directory, 100)] == ["step_00000300", "step_00000200"]
    assert sorted(entry.name for entry in directory.iterdir()) == [
        "notes",
        "step_00000100",
        "step_00000400",
        "step_backup",
    ]
    assert discard_after(tmp_path / "nothing", 0) == []


def test_an_interrupted_discard_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    save_steps(tmp_path, 1, 2)

    def fail(directory):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("runtime.atomic.shutil.rmtree", fail)
    with pytest.raises(UserError, match="cannot remove .*step_00000002: .*Permission denied"):
        discard_after(tmp_path / "checkpoints", 1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000001"]


def test_the_same_step_may_be_written_again(tmp_path):
    save_steps(tmp_path, 5)
    save_checkpoint(tmp_path / "checkpoints", 5, {"x": {"value": torch.tensor(-5)}})
    assert load_checkpoint(tmp_path)["x"]["value"].item() == -5


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "index.json", "state.json"])
def test_damage_is_found_and_named(tmp_path, name):
    save_steps(tmp_path, 1)
    file = tmp_path / "checkpoints" / "step_00000001" / name
    intact = file.read_bytes()
    flip_a_byte(file)
    with pytest.raises(UserError, match=f"{name} does not match the SHA-256"):
        load_checkpoint(tmp_path)
    file.write_bytes(intact[:-3])
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        load_checkpoint(tmp_path, verify=False)


def test_a_damaged_manifest_is_a_user_error(tmp_path):
    save_steps(tmp_path, 1)
    manifest = tmp_path / "checkpoints" / "step_00000001" / "manifest.json"
    for content in (b'{"format": 1, "fil', b"[]", b"\xff\xfe"):
        manifest.write_bytes(content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            load_checkpoint(tmp_path)
    manifest.write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(tmp_path)


def test_a_sound_one_is_found_behind_damaged_ones(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    said: list[str] = []
    for step in (3, 2):
        flip_a_byte(tmp_path / "checkpoints" / f"step_0000000{step}" / "rank_00000.safetensors")
    assert find_sound_checkpoint(tmp_path, said.append).name == "step_00000001"
    assert [("damaged" in line, "resuming from" in line) for line in said] == [(True, False)] * 2 + [(False, True)]
    flip_a_byte(tmp_path / "checkpoints" / "step_00000001" / "rank_00000.safetensors")
    with pytest.raises(UserError, match="every checkpoint"):
        find_sound_checkpoint(tmp_path, said.append)
    assert find_sound_checkpoint(tmp_path / "nothing", said.append) is None


def test_a_failed_write_keeps_the_last_one(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)

    def full(tensors, path):
        raise checkpoint_storage.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_storage, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*step_00000002: .*No space left"):
        save_steps(tmp_path, 2, keep_last=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000001"]
    assert load_checkpoint(tmp_path)["step"] == 1


def test_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 1, {"model": Run().model})
    with pytest.raises(UserError, match="holds model but this run has model, optimizer"):
        restore_checkpoint(tmp_path, Run().objects)
    with pytest.raises(UserError, match="model does not fit this run"):
        restore_checkpoint(tmp_path, {"model": torch.nn.Linear(2, 2)})


def test_names_and_meta_are_checked(tmp_path):
    with pytest.raises(AssertionError):
        save_checkpoint(tmp_path, 1, {"meta": {}})
    with pytest.raises(AssertionError):
        save_checkpoint(tmp_path, 1, {"../x": {}})
    with pytest.raises(AssertionError):
        save_checkpoint(tmp_path, 1, {}, {"tensor": torch.ones(1)})
    assert complete_checkpoints(tmp_path) == []
