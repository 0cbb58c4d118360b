"""Snapshots hold what a user of the model needs, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from rqstack import snapshots
from rqstack.snapshots import snapshot_tensors, weights_digest
from runtime.atomic import sha256_of_file
from runtime.errors import UserError
from runtime.step_directories import complete_steps, discard_after
from sampling.trained_models import read_metadata
from training.checkpoints.snapshots import save_snapshot


@dataclass
class Arch:
    width: int = 3


@dataclass
class Config:
    arch: Arch = field(default_factory=Arch)


class Tied(nn.Module):
    """Two names for one parameter, and a buffer in another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a
        self.register_buffer("codes", torch.arange(6).view(2, 3).t())


def test_the_files_and_their_content(tmp_path):
    tensors = {"w": torch.arange(6.0).view(2, 3)}
    averaged = {"w": tensors["w"] / 2}
    path = save_snapshot(tmp_path / "snapshots" / "step_00000010", tensors, Config(), {"step": 10}, averaged)
    names = ["COMPLETE", "config.yaml", "metadata.json", "model.safetensors", "model_ema.safetensors"]
    assert sorted(file.name for file in path.iterdir()) == names
    assert torch.equal(load_file(path / "model.safetensors")["w"], tensors["w"])
    assert torch.equal(load_file(path / "model_ema.safetensors")["w"], averaged["w"])
    assert yaml.safe_load((path / "config.yaml").read_text()) == {"arch": {"width": 3}}
    metadata = read_metadata(path)
    assert metadata["step"] == 10
    assert metadata["sha256"] == {name: sha256_of_file(path / name) for name in names[3:]}


def test_averaged_weights_are_left_out_where_there_are_none(tmp_path):
    path = save_snapshot(tmp_path / "a", {"w": torch.ones(1)}, {"arch": {}}, {})
    assert not (path / "model_ema.safetensors").exists()
    assert list(read_metadata(path)["sha256"]) == ["model.safetensors"]


def test_tensors_are_copies_even_of_tied_and_strided_ones(tmp_path):
    model = Tied()
    tensors = snapshot_tensors(model)
    assert set(tensors) == {"a.weight", "a.bias", "b.weight", "b.bias", "codes"}
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    before = tensors["a.weight"].clone()
    with torch.no_grad():
        model.a.weight.zero_()
    assert torch.equal(tensors["a.weight"], before)
    path = save_snapshot(tmp_path / "a", tensors, {}, {})
    assert torch.equal(load_file(path / "model.safetensors")["codes"], model.codes)


def test_live_tied_tensors_can_be_saved_directly(tmp_path):
    path = save_snapshot(tmp_path / "a", Tied().state_dict(), {}, {})
    assert len(load_file(path / "model.safetensors")) == 5


def test_old_ones_are_removed_and_strangers_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    for step in (1, 2, 3):
        save_snapshot(tmp_path / f"step_{step:08d}", {"w": torch.ones(1)}, {}, {}, keep_last=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine", "step_00000002", "step_00000003"]


def test_the_one_just_written_stays_and_later_ones_can_be_discarded(tmp_path):
    for step in (100, 200, 300):
        save_snapshot(tmp_path / f"step_{step:08d}", {"w": torch.ones(1)}, {}, {})
    save_snapshot(tmp_path / "step_00000150", {"w": torch.ones(1)}, {}, {}, keep_last=2)
    assert [path.name for path in complete_steps(tmp_path)] == ["step_00000300", "step_00000150"]
    assert discard_after(tmp_path, 150) == [tmp_path / "step_00000300"]
    assert complete_steps(tmp_path) == [tmp_path / "step_00000150"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_snapshot(tmp_path / "a", {"w": torch.ones(1)}, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_the_digest_sees_every_value_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    digest = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == digest
    with torch.no_grad():
        model[0].bias[1] += 1e-6
    assert weights_digest(model) != digest
    same_bytes = [
        nn.ParameterDict({"w": torch.zeros(shape, dtype=dtype)})
        for shape, dtype in (
            ((4,), torch.float32),
            ((2, 2), torch.float32),
            ((8,), torch.bfloat16),
            ((8,), torch.float16),
        )
    ]
    assert len({weights_digest(module) for module in same_bytes}) == 4
