"""Reading checkpoints: our snapshots, the published format and its variants, and everything that can be wrong."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from rqstack.archive import read_archive
from rqstack.published_layout import ours_from_published
from rqstack.snapshots import snapshot_tensors
from rqvae import RQVAE, RQVAEConfig, load_rqvae
from tests.rqvae.published_state import published_state

ARCH = {
    "type": "rq-vae",
    "hparams": {
        "embed_dim": 4,
        "n_embed": [6, 5],
        "latent_shape": [4, 4, 4],
        "code_shape": [4, 4, 2],
        "codebook_update": "deferred",
    },
    "ddconfig": {"z_channels": 4, "resolution": 4, "ch": 32, "ch_mult": [1], "num_res_blocks": 1},
}


def make(**hparams):
    config = {**ARCH, "hparams": {**ARCH["hparams"], **hparams}}
    model = RQVAE(RQVAEConfig.from_mapping(config))
    model.train()(torch.randn(2, 3, 4, 4))
    model.update_codebook()
    return model


def write_snapshot(folder, model, complete=True, arch=ARCH):
    folder.mkdir()
    save_file(snapshot_tensors(model), folder / "model.safetensors")
    OmegaConf.save({"arch": arch, "seed": 1}, folder / "config.yaml")
    (folder / "metadata.json").write_text(json.dumps({"step": 7}))
    if complete:
        (folder / "COMPLETE").touch()
    return folder


def write_published(folder, state, arch=ARCH, **extra):
    folder.mkdir()
    torch.save({"state_dict": state, **extra}, folder / "model.pt")
    OmegaConf.save({"arch": arch}, folder / "config.yaml")
    return folder / "model.pt"


def assert_same(loaded, model):
    assert not loaded.training
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_snapshot_round_trip(tmp_path):
    model = make()
    folder = write_snapshot(tmp_path / "step", model)
    assert_same(load_rqvae(folder), model)
    archive = read_archive(str(folder))
    assert archive.metadata == load_rqvae(folder).metadata == {"step": 7}
    assert archive.config["seed"] == 1


def test_snapshot_with_averaged_weights(tmp_path):
    model, averaged = make(), make()
    folder = write_snapshot(tmp_path / "step", model)
    with pytest.raises(ValueError, match=r"has no averaged weights \(model_ema.safetensors\)"):
        load_rqvae(folder, ema=True)
    save_file(snapshot_tensors(averaged), folder / "model_ema.safetensors")
    assert_same(load_rqvae(folder, ema=True), averaged)
    assert_same(load_rqvae(folder), model)


def test_snapshot_without_mark_does_not_exist(tmp_path):
    folder = write_snapshot(tmp_path / "step", make(), complete=False)
    with pytest.raises(ValueError, match="incomplete snapshot"):
        load_rqvae(folder)


def test_snapshot_tensors_are_independent_and_contiguous():
    model = make(n_embed=6, shared_codebook=True).to(memory_format=torch.channels_last)
    tensors = snapshot_tensors(model)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    tensors["quant_conv.bias"].add_(1)
    assert not torch.equal(tensors["quant_conv.bias"], model.quant_conv.bias)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_round_trip(tmp_path, shared, prefix):
    hparams = {"n_embed": 6 if shared else [6, 5], "shared_codebook": shared}
    model = make(**hparams)
    state = published_state(model)
    assert state["quantizer.codebooks.1.weight"].shape == (7 if shared else 6, 4)
    assert (state["quantizer.codebooks.1.weight"][-1] == 0).all()
    arch = {**ARCH, "hparams": {**ARCH["hparams"], **hparams}}
    file = write_published(tmp_path / "run", {prefix + key: value for key, value in state.items()}, arch)
    for book in model.quantizer.codebooks:
        book.num_updates.zero_()
    assert_same(load_rqvae(file), model)
    assert_same(load_rqvae(file.parent), model)


def test_loading_draws_no_random_numbers(golden):
    before = torch.get_rng_state()
    load_rqvae(golden("rqvae-chmult").path / "model.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_checkpoints_load_as_fp32(tmp_path):
    model = make()
    file = write_published(tmp_path / "run", {k: v.half() for k, v in published_state(model).items()})
    loaded = load_rqvae(file)
    assert all(value.dtype == torch.float32 for value in loaded.parameters())
    assert torch.equal(loaded.quant_conv.weight, model.quant_conv.weight.half().float())


def test_differing_copies_of_a_shared_codebook(tmp_path):
    state = published_state(make(n_embed=6, shared_codebook=True))
    state["quantizer.codebooks.1.weight"] = state["quantizer.codebooks.1.weight"] + 1
    arch = {**ARCH, "hparams": {**ARCH["hparams"], "n_embed": 6, "shared_codebook": True}}
    with pytest.raises(ValueError, match=r"codebooks\.1\.weight differs between depths"):
        load_rqvae(write_published(tmp_path / "run", state, arch))


def test_every_mismatch_is_named_in_one_line(tmp_path):
    state = published_state(make())
    del state["quant_conv.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["decoder.conv_out.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        load_rqvae(write_published(tmp_path / "run", state))
    message = str(error.value)
    assert "missing quant_conv.bias;" in message
    assert "unexpected extra.weight;" in message
    assert "decoder.conv_out.bias is [5], the config wants [3]" in message
    assert "\n" not in message


def test_long_lists_of_mismatches_are_cut(tmp_path):
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load_rqvae(write_published(tmp_path / "run", {}))


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_rqvae(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_rqvae(tmp_path)
    file = write_published(tmp_path / "run", published_state(make()))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_rqvae(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="holds a list, not a dictionary with 'state_dict'"):
        load_rqvae(file)
    file.write_bytes(whole)
    config = file.parent / "config.yaml"
    config.write_text("a: [1,")
    with pytest.raises(ValueError, match="is not a valid YAML file"):
        load_rqvae(file)
    config.write_text("seed: 1")
    with pytest.raises(ValueError, match="has no 'arch' section"):
        load_rqvae(file)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="no config beside the checkpoint"):
        load_rqvae(file)


def test_damaged_snapshot(tmp_path):
    folder = write_snapshot(tmp_path / "step", make())
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_rqvae(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_rqvae(folder)


def test_pickled_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path / "never"),))

    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"state_dict": {}, "payload": Payload()}, folder / "model.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_rqvae(folder)


def test_published_conversion_keeps_golden_tensors(golden):
    reference = golden("rqvae-shared")
    for key in ("state_dict", "state_dict_ema"):
        ours = ours_from_published(reference.checkpoint[key], {"arch": reference.config.arch})
        assert ours["quantizer.codebooks.0.weight"].shape == (64, 16)
        assert not any(name.startswith("quantizer.codebooks.1") for name in ours)
