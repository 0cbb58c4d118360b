"""`python -m rqtransformer.pretrained`: what a checkpoint holds, and conversion forth and back without a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from rqstack.archive import read_archive
from rqstack.conversion import convert
from rqtransformer import load_rqtransformer
from rqvae import load_rqvae
from rqvae.model import count_parameters
from tests.commands import start
from tests.repository import GOLDEN
from tests.rqvae.published_state import published_state

CHECKPOINTS = sorted(file.parent.name for file in GOLDEN.glob("*/model.pt"))
LOADERS = {"rqvae": load_rqvae, "rqtransformer": load_rqtransformer}


def tensors_of(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(path, weights_only=True)


def assert_identical(left: Path, right: Path) -> None:
    """The same parts in the same order, and the same names, types, shapes and bits."""
    ours, theirs = tensors_of(left), tensors_of(right)
    assert list(ours) == list(theirs)
    for part in ours:
        assert ours[part].keys() == theirs[part].keys()
        for name, tensor in ours[part].items():
            other = theirs[part][name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
            assert torch.equal(tensor, other), name


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back_is_the_identity(name, tmp_path, command):
    source = shutil.copytree(GOLDEN / name, tmp_path / name)
    code, printed, _ = command("rqtransformer.pretrained", "convert", source / "model.pt")
    snapshot = Path(printed.strip())
    assert (code, snapshot) == (0, tmp_path / f"{name}-snapshot")
    assert (snapshot / "COMPLETE").is_file()
    assert not list(snapshot.glob("*.pt"))
    code, printed, _ = command(
        "rqtransformer.pretrained", "convert", snapshot, "--to", "published", "--out", tmp_path / "back"
    )
    assert code == 0
    back = tmp_path / "back"
    assert_identical(GOLDEN / name / "model.pt", back / "model.pt")
    assert (back / "config.yaml").read_bytes() == (GOLDEN / name / "config.yaml").read_bytes()


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.startswith("rq")])
def test_a_converted_snapshot_loads_as_the_original(name, ema, tmp_path):
    if ema and "state_dict_ema" not in tensors_of(GOLDEN / name / "model.pt"):
        pytest.raises(ValueError, LOADERS[name.split("-")[0]], convert(GOLDEN / name, out=tmp_path / "new"), ema=True)
        return
    load = LOADERS[name.split("-")[0]]
    loaded, original = load(convert(GOLDEN / name, out=tmp_path / "new"), ema=ema), load(GOLDEN / name, ema=ema)
    for key, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert getattr(loaded, "sampling_defaults", None) == getattr(original, "sampling_defaults", None)


def test_a_snapshot_of_ours_gets_the_layout_that_rqvae_writes(tmp_path):
    model = load_rqvae(GOLDEN / "rqvae-chmult")
    with torch.no_grad():
        model.quantizer.codebooks[0].num_updates.fill_(3)
    folder = model.save_pretrained(tmp_path / "ours", metadata={"step": 3})
    published = tensors_of(convert(folder, "published", tmp_path / "published") / "model.pt")
    expected = published_state(model)
    assert list(published) == ["state_dict"]
    assert published["state_dict"].keys() == expected.keys()
    assert all(torch.equal(published["state_dict"][name], tensor) for name, tensor in expected.items())
    arch = OmegaConf.load(tmp_path / "published" / "config.yaml").arch
    assert "codebook_update" not in arch.hparams and arch.hparams.n_embed == model.config.n_embed
    load_rqvae(tmp_path / "published")


def test_wrapped_names_come_back(tmp_path):
    parts = tensors_of(GOLDEN / "rqtransformer-class" / "model.pt")
    parts["state_dict"] = {f"module.{name}": tensor for name, tensor in parts["state_dict"].items()}
    folder = tmp_path / "wrapped"
    folder.mkdir()
    torch.save(parts, folder / "epoch7.pt")
    shutil.copy(GOLDEN / "rqtransformer-class" / "config.yaml", folder)
    (folder / "tokenizer.json").write_text("{}")
    snapshot = convert(folder)
    assert not any(name.startswith("module.") for name in load_file(snapshot / "model.safetensors"))
    load_rqtransformer(snapshot)
    back = convert(snapshot, "published", tmp_path / "back")
    assert_identical(folder / "epoch7.pt", back / "epoch7.pt")
    assert (back / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["rqvae-shared", "rqtransformer-text"])
def test_inspect_says_the_same_of_both_formats(name, golden, tmp_path, command):
    snapshot = convert(GOLDEN / name, out=tmp_path / "new")
    found = []
    for path in (GOLDEN / name / "model.pt", snapshot):
        code, printed, _ = command("rqtransformer.pretrained", "inspect", path, "--json")
        assert code == 0
        found.append(json.loads(printed))
    published, ours = found
    assert (published["format"], ours["format"]) == ("published", "snapshot")
    assert published["stage"] == ours["stage"] == ("stage 1" if name == "rqvae-shared" else "stage 2")
    assert published["config"] == ours["config"]
    assert published["averaged_weights"] == ours["averaged_weights"] == (name == "rqvae-shared")
    counts = [facts["parts"]["state_dict"]["parameters"] for facts in found]
    of_stage1 = count_parameters(load_rqvae(GOLDEN / "rqvae-shared"))
    assert counts == [of_stage1 if name == "rqvae-shared" else int(golden(name).io["n_params"])] * 2
    assert len(ours["metadata"]["sha256"]) == len(ours["parts"])


def test_inspect_for_people(command):
    code, printed, _ = command("rqtransformer.pretrained", "inspect", GOLDEN / "rqtransformer-text")
    assert code == 0
    for part in (
        "published checkpoint of stage 2 (RQ-Transformer), 0.9 MB",
        "body_transformer     32 tensors",
        "averaged weights: no",
        "block_size: [8, 8, 4]",
        "'top_p': 0.95",
        "dataset: cc3m",
    ):
        assert part in printed


def save(folder: Path, parts: dict, config: str = "arch: {type: rq-transformer}\n") -> Path:
    folder.mkdir()
    torch.save(parts, folder / "model.pt")
    (folder / "config.yaml").write_text(config)
    return folder


def test_what_cannot_be_converted_is_one_line(command, tmp_path):
    def refused(says: str, *words: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        code, printed, error = command("rqtransformer.pretrained", *words)
        assert (code, printed) == (2, "")
        assert error.startswith("error: ") and error.count("\n") == 1 and says in error, error
        assert sorted(tmp_path.rglob("*")) == before

    one = {"state_dict": {"a": torch.ones(2)}}
    plain, full = save(tmp_path / "plain", one), tmp_path / "full"
    snapshot = convert(plain, out=full)
    refused("no checkpoint at", "inspect", tmp_path / "nothing")
    refused("exists: nothing is overwritten", "convert", plain, "--out", full)
    refused("is a snapshot checkpoint already; --to published", "convert", snapshot)
    refused("is a published checkpoint already", "convert", plain, "--to", "published")
    refused("format 'onnx' is unknown; choose one of snapshot, published", "convert", plain, "--to", "onnx")
    refused(
        "also holds epoch, optimizer",
        "convert",
        save(tmp_path / "more", {**one, "epoch": 3, "optimizer": {"state": {"a": 1}}}),
    )
    refused("holds a list", "inspect", save(tmp_path / "list", [1]))
    refused("no named tensors: it has epoch", "inspect", save(tmp_path / "epoch", {"epoch": 1}))
    arch = "arch: {type: rq-vae, hparams: {code_shape: [1, 1, 1]}}\n"
    padded = save(tmp_path / "padded", {"state_dict": {"quantizer.codebooks.0.weight": torch.ones(3, 2)}}, arch)
    refused("codebooks.0.weight would not come back the same", "convert", padded)
    (snapshot / "COMPLETE").unlink()
    refused("incomplete snapshot", "inspect", snapshot)
    (plain / "model.pt").write_bytes(b"PK half")
    refused("cannot be read as a checkpoint", "inspect", plain)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("arch: {type: rq-vae, hparams: {bottleneck_type: fsq}}", "bottleneck_type 'fsq' has no published form"),
        ("arch: {type: rq-transformer, cond_drop_prob: 0.1}", "arch.cond_drop_prob=0.1 has no published form"),
        ("arch: {type: rq-transformer, body: {block: {norm: rms}}}", "arch.body.block.norm=rms has no published form"),
        ("arch: {type: other}", "neither stage"),
    ],
)
def test_models_that_the_published_code_does_not_know(config, says, tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.yaml").write_text(config)
    (folder / "COMPLETE").touch()
    with pytest.raises(ValueError, match=says):
        convert(folder, "published")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot"]
    assert read_archive(folder).parts["state_dict"]["a"].tolist() == [1, 1]


def test_inspect_for_a_reader_who_has_seen_enough():
    process = start("-m", "rqtransformer.pretrained", "inspect", GOLDEN / "rqtransformer-text")
    process.stdout.close()
    with process.stderr:
        assert (process.wait(120), process.stderr.read()) == (141, "")
