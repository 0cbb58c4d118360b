"""`from_pretrained`, `save_pretrained` and `push_to_hub` of both models; the hub itself is stood in for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml

from rqstack.snapshots import snapshot_tensors
from rqtransformer import RQTransformer, load_rqtransformer
from rqvae import RQVAE, load_rqvae
from tests.repository import GOLDEN

MODELS = {
    "rqvae-shared": (RQVAE, load_rqvae),
    "rqtransformer-text": (RQTransformer, load_rqtransformer),
    "rqtransformer-class": (RQTransformer, load_rqtransformer),
}


@pytest.fixture
def hub(monkeypatch) -> ModuleType:
    """In the place of huggingface_hub: repositories are folders; `calls` remembers what was asked."""
    module = ModuleType("huggingface_hub")
    module.calls, module.repositories = [], {}

    def snapshot_download(repo_id, **options):
        module.calls.append(("download", repo_id, options))
        if repo_id not in module.repositories:
            raise OSError(f"404: {repo_id} is not there\nsecond line")
        return str(module.repositories[repo_id])

    class HfApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            module.calls.append(("create", repo_id, {"private": private, "token": self.token}))
            return SimpleNamespace(repo_id=f"someone/{repo_id}" if "/" not in repo_id else repo_id)

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            module.calls.append(("upload", repo_id, {"revision": revision, "message": commit_message}))
            target = Path(folder_path).parents[1] / f"hub-{repo_id.replace('/', '-')}"
            module.repositories[repo_id] = shutil.copytree(folder_path, target)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    module.snapshot_download, module.HfApi = snapshot_download, HfApi
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    yield module
    for folder in module.repositories.values():
        shutil.rmtree(folder, ignore_errors=True)


def assert_same(loaded, model) -> None:
    assert not loaded.training
    assert loaded.config == model.config
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_a_local_folder_round_trip(name, tmp_path):
    kind, load = MODELS[name]
    model = kind.from_pretrained(GOLDEN / name)
    assert_same(model, load(GOLDEN / name))
    folder = model.save_pretrained(tmp_path / "kept", metadata={"step": 7})
    assert sorted(file.name for file in folder.iterdir()) == [
        "COMPLETE",
        "README.md",
        "config.yaml",
        "metadata.json",
        "model.safetensors",
    ]
    again = kind.from_pretrained(str(folder))
    assert_same(again, model)
    assert again.metadata == {"step": 7}
    if kind is RQTransformer:
        assert again.sampling_defaults == model.sampling_defaults != {}
    twice = again.save_pretrained(tmp_path / "twice")
    assert {file.name: file.read_bytes() for file in twice.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


def test_averaged_weights_and_a_snapshot(tmp_path):
    name = "rqtransformer-class"
    assert_same(RQTransformer.from_pretrained(GOLDEN / name, ema=True), load_rqtransformer(GOLDEN / name, ema=True))
    model = RQVAE.from_pretrained(GOLDEN / "rqvae-chmult")
    assert list(snapshot_tensors(model)) == list(model.state_dict())


def test_a_repository_by_its_id(hub, tmp_path):
    model = RQVAE.from_pretrained(GOLDEN / "rqvae-deep")
    hub.repositories["someone/deep"] = model.save_pretrained(tmp_path / "deep")
    loaded = RQVAE.from_pretrained("someone/deep", revision="v1", token="secret", cache_dir=tmp_path)
    assert_same(loaded, model)
    ((_, repo_id, options),) = hub.calls
    assert repo_id == "someone/deep"
    assert options.pop("allow_patterns")
    assert options == {"revision": "v1", "token": "secret", "cache_dir": tmp_path, "local_files_only": False}
    hub.repositories.clear()


def test_pushing_uploads_the_snapshot_with_its_files(hub, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    model = RQTransformer.from_pretrained(GOLDEN / "rqtransformer-text")
    url = model.push_to_hub(
        "text",
        metadata={"license": "mit", "fid": 12.5},
        files=[tmp_path / "tokenizer.json"],
        private=True,
        token="secret",
        revision="main",
        message="first",
    )
    assert url == "https://hub/someone/text/commit/1"
    assert hub.calls == [
        ("create", "text", {"private": True, "token": "secret"}),
        ("upload", "someone/text", {"revision": "main", "message": "first"}),
    ]
    folder = hub.repositories["someone/text"]
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert_same(RQTransformer.from_pretrained("someone/text"), model)


def test_the_model_card_says_what_the_metadata_says():
    model = RQTransformer.from_pretrained(GOLDEN / "rqtransformer-text")
    card = model.model_card({"license": "cc-by-nc-sa-4.0", "dataset": "synthetic", "fid": 12.5})
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "rqstack",
        "tags": ["text-to-image"],
        "license": "cc-by-nc-sa-4.0",
    }
    assert "| condition | text of 8 tokens |" in body and "| codes of an image | 8 x 8 x 4 |" in body
    assert "from rqtransformer import RQTransformer" in body
    assert json.loads(body.split("```json\n")[1].split("```")[0]) == {"dataset": "synthetic", "fid": 12.5}
    card = RQVAE.from_pretrained(GOLDEN / "rqvae-shared").model_card()
    assert "license" not in card and "16 x 16, 3 channels" in card and "64, 64, 64, 64" in card


def test_what_cannot_work_is_one_line(hub, monkeypatch, tmp_path):
    model = RQVAE.from_pretrained(GOLDEN / "rqvae-deep")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full exists and is not an empty folder"):
        model.save_pretrained(tmp_path / "full")
    with pytest.raises(FileNotFoundError):
        model.save_pretrained(tmp_path / "new", files=[tmp_path / "missing.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "nothing is half-written"
    for wrong in ("no-such-folder", "/no/such/folder", "a/b/c", "./a"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at .* such as owner/name"):
            RQVAE.from_pretrained(wrong)
    with pytest.raises(ValueError, match=r"some/where .*cannot be fetched from the hub: 404") as error:
        RQVAE.from_pretrained("some/where")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: RQTransformer.from_pretrained("some/where"), lambda: model.push_to_hub("some/where")):
        with pytest.raises(ValueError, match=r"needs the package huggingface_hub: pip install rqstack\[hub\]") as error:
            call()
        assert "\n" not in str(error.value)


class Unreachable(Exception):
    """As errors of HTTP clients: no OSError, several lines."""


@pytest.mark.parametrize("error", [OSError("no network\nat all"), Unreachable("x" * 500), ConnectionError("offline")])
def test_without_a_network_it_is_one_short_line(hub, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub.HfApi, "create_repo", fail)
    monkeypatch.setattr(hub, "snapshot_download", fail)
    model = RQVAE.from_pretrained(GOLDEN / "rqvae-deep")
    for call in (lambda: model.push_to_hub("some/where"), lambda: RQVAE.from_pretrained("some/where")):
        with pytest.raises(ValueError, match="some/where .*cannot be") as found:
            call()
        assert "\n" not in str(found.value) and len(str(found.value)) < 300


@pytest.mark.parametrize("repo_id", [None, 3, "", "/", "a/b/c", []])
def test_ids_that_are_none(hub, repo_id):
    with pytest.raises(ValueError, match="such as owner/name"):
        RQVAE.from_pretrained(GOLDEN / "rqvae-deep").push_to_hub(repo_id)
    assert not hub.calls


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": {1, 2}}, {(1, 2): 3}])
def test_metadata_that_json_cannot_hold(metadata, tmp_path):
    with pytest.raises(ValueError, match="metadata must be a dictionary of what JSON can hold"):
        RQVAE.from_pretrained(GOLDEN / "rqvae-deep").save_pretrained(tmp_path / "new", metadata=metadata)
    assert not (tmp_path / "new").exists()


def test_only_local_files_and_a_revision_reach_the_hub(hub, tmp_path):
    hub.repositories["a/b"] = RQVAE.from_pretrained(GOLDEN / "rqvae-deep").save_pretrained(tmp_path / "deep")
    RQVAE.from_pretrained("a/b", local_files_only=True, revision="v2")
    assert hub.calls[0][2]["local_files_only"] is True and hub.calls[0][2]["revision"] == "v2"
    hub.repositories.clear()
