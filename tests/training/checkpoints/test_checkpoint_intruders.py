"""Checkpoints that somebody made: each is refused in one line, nothing is executed, nothing outside is read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runtime.errors import UserError
from tests.training.checkpoint_files import load_checkpoint, save_checkpoint
from training.checkpoints.checkpoint_restoring import restore_checkpoint

STEP = "checkpoints/step_00000001"
PART = "rank_00000.safetensors"


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def seal(directory: Path, changes: dict[str, Any] | None = None) -> None:
    """A manifest that fits the files as they are: an intruder can compute hashes too."""
    files = {}
    for file in sorted(directory.iterdir()):
        if file.name not in ("COMPLETE", "manifest.json"):
            content = file.read_bytes()
            files[file.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (directory / "manifest.json").write_text(json.dumps({"format": 2, "files": files | (changes or {})}))


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def sound(tmp_path, monkeypatch) -> Path:
    """A sound checkpoint of a 4x3 tensor, in a folder of its own that is the working directory."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "checkpoints", 1, {"x": {"w": torch.ones(4, 3), "b": torch.ones(2)}}, {"images_seen": 4})
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / STEP / PART).read_bytes())
    return tmp_path / STEP


def refused(sound: Path, match: str) -> None:
    """Verified or not, loaded or restored: one line."""
    for verify in (True, False):
        with pytest.raises(UserError, match=match) as raised:
            load_checkpoint(sound, verify=verify)
        assert "\n" not in str(raised.value)
        with pytest.raises(UserError, match=match):
            restore_checkpoint(sound, {"x": torch.nn.Linear(3, 4)}, verify=verify)
    assert not Path("executed").exists()


def test_a_pickle_named_safetensors(sound):
    (sound / PART).write_bytes(pickle.dumps(Bomb()))
    seal(sound)
    # the index may be told that it is large enough
    edit(sound / "index.json", lambda index: index["tensors"].pop("x/w"))
    seal(sound)
    refused(sound, f"{PART}")


def test_a_torch_file_named_safetensors(sound):
    torch.save({"x/w": torch.ones(4, 3), "x/b": Bomb()}, sound / PART)
    seal(sound)
    refused(sound, f"{PART} cannot be read")


@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_a_truncated_part(sound, length):
    content = (sound / PART).read_bytes()
    (sound / PART).write_bytes(content[:length])
    with pytest.raises(UserError, match=rf"{PART} has \d+ bytes, its manifest says"):
        load_checkpoint(sound)
    seal(sound)
    refused(sound, PART)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a/b", "..\\x", "x\0", ""])
def test_a_manifest_that_leads_elsewhere(sound, name):
    seal(sound, {name: {"sha256": "0" * 64, "bytes": 1}})
    refused(sound, "which is not a file of this directory")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "manifest.json", "other.safetensors", 3, None, ["x"]])
def test_an_index_that_leads_elsewhere(sound, name):
    edit(sound / "index.json", lambda index: index["tensors"]["x/w"]["chunks"][0].__setitem__(0, name))
    seal(sound)
    refused(sound, "not in the manifest|not what a checkpoint writes")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "float32", "shape": [10**12, 3], "chunks": [[PART, [0, 0], [10**12, 3]]]},
        {"dtype": "float32", "shape": [0, 10**30], "chunks": []},
        {"dtype": "float32", "shape": [0, 2**60, 2**60], "chunks": []},
        {"dtype": "float32", "shape": [4, 3], "chunks": []},
        {"dtype": "float32", "shape": [4, 3], "chunks": [[PART, [0, 0], [2, 3]]]},
        {"dtype": "float32", "shape": [4, 3], "chunks": [[PART, [0, 0], [2, 3]], [PART, [0, 0], [2, 3]]]},
        {"dtype": "float32", "shape": [4, 3], "chunks": [[PART, [-4, 0], [4, 3]]]},
        {"dtype": "float32", "shape": [4, 3], "chunks": [[PART, [2, 0], [4, 3]]]},
        {"dtype": "float32", "shape": [4, 3], "chunks": [[PART, [0], [12]]]},
        {"dtype": "float32", "shape": [4, True], "chunks": [[PART, [0, 0], [4, 1]]]},
        {"dtype": "float64", "shape": [4, 300], "chunks": [[PART, [0, 0], [4, 300]]]},
        {"dtype": "float32", "shape": [2, 3], "chunks": [[PART, [0, 0], [2, 3]]]},
        {"dtype": "float32", "shape": [5, 1], "chunks": [[PART, [0, 0], [5, 1]]]},
        {"dtype": "object", "shape": [4, 3], "chunks": [[PART, [0, 0], [4, 3]]]},
        {"shape": [4, 3]},
        [],
        None,
    ],
)
def test_an_index_that_lies(sound, entry):
    edit(sound / "index.json", lambda index: index["tensors"].__setitem__("x/w", entry))
    seal(sound)
    refused(sound, "step_00000001")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        "[" * 100_000,
        '{"format": 2}',
        '{"format": 2, "files": []}',
        '{"format": 2, "files": {"state.json": 1}}',
        '{"format": 3, "files": {}}',
        '{"format": 2, "files": {"state.json": {"sha256": "", "bytes": "1"}}}',
    ],
)
def test_a_manifest_that_is_none(sound, text):
    (sound / "manifest.json").write_text(text)
    refused(sound, r"manifest\.json|checkpoint format 3")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("objects"),
        lambda state: state.__setitem__("step", "1"),
        lambda state: state.pop("meta"),
        lambda state: state.__setitem__("meta", 7),
        lambda state: state["objects"].__setitem__("x", {"w": {"$tensor": "nothing"}}),
        lambda state: state["objects"].__setitem__("x", {"$tensor": ["w"]}),
        lambda state: state["objects"].__setitem__("x", {"w": {"$tensor": "w", "memory": [7, 8]}}),
        lambda state: state["objects"].__setitem__("x", {"w": {"$tuple": 3}}),
        lambda state: state["objects"].__setitem__("x", {"w": {"$dict": [1]}}),
        lambda state: state["objects"].__setitem__("x", {"w": {"$dict": [[{}, 1]]}}),
        lambda state: state["objects"].__setitem__("x", {"w": {"$bytes": 5}}),
        lambda state: state["objects"].__setitem__("x", None),
        lambda state: state["objects"].__setitem__("x", [1, 2]),
    ],
)
def test_a_state_that_does_not_fit(sound, change):
    edit(sound / "state.json", change)
    seal(sound)
    with pytest.raises(UserError) as raised:
        restore_checkpoint(sound, {"x": torch.nn.Linear(3, 4)})
    assert "\n" not in str(raised.value)
    assert str(sound) in str(raised.value)


def test_a_first_format_with_a_path_for_a_name(sound):
    save_file({"w": torch.ones(4, 3)}, sound.parent / "stolen.safetensors")
    edit(sound / "state.json", lambda state: state.__setitem__("objects", {"../stolen": {"w": {"$tensor": "w"}}}))
    seal(sound)
    edit(sound / "manifest.json", lambda manifest: manifest.__setitem__("format", 1))
    with pytest.raises(UserError, match="stolen"):
        load_checkpoint(sound)


def test_what_is_refused_above_would_load_unchanged(sound):
    seal(sound)
    assert load_checkpoint(sound)["x"]["w"].eq(1).all()
