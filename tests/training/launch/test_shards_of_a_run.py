"""Shards that are exchanged in place under a resumed run are noticed; copied and touched ones are not mistaken."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data import DatasetConfig, build_dataset
from data.shards import shard_prints as prints_module
from data.shards.packing import pack
from data.shards.shard_prints import ShardPrint, as_json, from_json, shard_prints, touched
from runtime.errors import UserError
from tests.training.tiny_runs import session, stage1, train, write_config
from training.launch.data_identity import SHARDS_FILE, _read_shards


@pytest.fixture
def shards(tmp_path) -> Path:
    for split in ("train", "val"):
        pack(build_dataset(DatasetConfig(type="synthetic", resolution=8, num_samples=12), split), {}, tmp_path / "s", 4)
    return tmp_path / "s"


@pytest.fixture
def run(shards, tmp_path) -> Path:
    data = {"type": "shards", "root": str(shards), "resolution": 8}
    config = write_config(tmp_path / "tiny.yaml", stage1({"dataset": data, "experiment.max_steps": 1}))
    return train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir


def resume(run: Path, *words: str) -> str:
    """What it warns of."""
    resumed = session("stage1", "--resume", "-l", run, "experiment.max_steps=2", *words)
    resumed.close()
    return "\n".join(resumed.data.warnings)


def change(shard: Path) -> None:
    """A byte of the last image, in place: size, names and index stay."""
    content = bytearray(shard.read_bytes())
    place = content.rindex(b"IDAT") + 6
    content[place] ^= 1
    shard.write_bytes(content)


def hashed(monkeypatch) -> list[Path]:
    files: list[Path] = []
    original = prints_module.sha256_of_file
    monkeypatch.setattr(prints_module, "sha256_of_file", lambda path: (files.append(path), original(path))[1])
    return files


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_changed_in_place_is_refused_by_name(split, run, shards):
    changed = shards / f"{split}-000000.tar"
    before = (run / SHARDS_FILE).read_bytes()
    change(changed)
    with pytest.raises(UserError, match=f"{changed}: it has other content than when the run began") as told:
        resume(run)
    assert "dataset.accept_changed=true" in str(told.value) and len(str(told.value)) < 300
    assert (run / SHARDS_FILE).read_bytes() == before
    assert "(accepted)" in resume(run, "dataset.accept_changed=true")
    assert resume(run) == "", "accepted once, it is what the run goes on with"


def test_only_touched_shards_are_hashed_and_copies_are_the_same(run, shards, tmp_path, monkeypatch):
    files = hashed(monkeypatch)
    assert resume(run) == "" and files == []
    os.utime(shards / "train-000001.tar", (1, 1))
    assert resume(run) == "" and files == [shards / "train-000001.tar"]
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved, copy_function=shutil.copyfile)
    files.clear()
    assert resume(run, f"dataset.root={moved}") == ""
    assert len(files) == len(list(moved.glob("*.tar")))


def test_without_a_manifest_a_touched_shard_is_a_warning(shards, tmp_path):
    for manifest in shards.glob("*.json"):
        manifest.unlink()
    data = {"type": "shards", "root": str(shards), "resolution": 8}
    config = write_config(tmp_path / "tiny.yaml", stage1({"dataset": data, "experiment.max_steps": 1}))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir
    change(shards / "train-000000.tar")
    assert "train-000000.tar: it was written to since the run began; without a manifest" in resume(run)
    assert resume(run) == ""


def test_a_run_that_says_nothing_of_its_shards_is_resumed(run, shards):
    (run / SHARDS_FILE).unlink()
    change(shards / "train-000000.tar")
    assert resume(run) == ""
    assert (run / SHARDS_FILE).stat().st_size > 100


@pytest.mark.parametrize("text", ["", "[]", "null", '{"train": 7}', '{"train": [{"name": 1}]}', '{"train": [[]]}'])
def test_a_file_that_says_something_else_says_nothing(text, tmp_path):
    (tmp_path / SHARDS_FILE).write_text(text)
    assert from_json(_read_shards(tmp_path).get("train")) == []


def test_prints_survive_json_and_other_data_sets_have_none(shards):
    dataset = build_dataset(DatasetConfig(type="shards", root=str(shards), resolution=8), "train")
    found = shard_prints(dataset)
    assert len(found) == 3 and all(len(shard.sha256) == 64 for shard in found)
    assert from_json(as_json(found)) == found
    assert from_json([{"name": "a", "size": 1, "time": True}]) == [] != [ShardPrint("a", 1, 1)]
    digits = build_dataset(DatasetConfig(type="digits", resolution=8), "train")
    assert shard_prints(digits) == touched([], digits) == []
