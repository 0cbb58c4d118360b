"""Reading checkpoints: both layouts, every key variant, and errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from rqtransformer import load_rqtransformer, sample
from rqtransformer.pretrained import sampling_settings

KEY_VARIANTS = {
    "published": ({}, {"input_mlp.weight": [16, 6], "head_mlp.bias": [16]}),
    "shared tokens": ({"input_emb_vqvae": False, "head_emb_vqvae": False}, {"tok_emb.weight": [11, 16]}),
    "tokens per depth": (
        {"head_emb_vqvae": False, "shared_tok_emb": False, "vocab_size": [11, 4, 7]},
        {"tok_emb.weight": [22, 16], "tok_emb.offsets": [3], "input_mlp.weight": [16, 6]},
    ),
    "classifier per depth": (
        {"shared_cls_emb": False, "vocab_size": [11, 4, 7]},
        {"classifier.linear.weight": [3, 16, 11], "classifier.linear.bias": [3, 11]},
    ),
    "text": (
        {"block_size_cond": 4},
        {
            "cond_classifier.layer_norm.weight": [16],
            "cond_classifier.linear.weight": [5, 16],
            "cond_classifier.linear.bias": [5],
            "pos_emb_cond": [1, 4, 16],
        },
    ),
    "no biases": (
        {"body": {"n_layer": 1, "block": {"n_head": 2, "attn_bias": False, "mlp_bias": False}}},
        {"body_transformer.blocks.0.attn.proj.weight": [16, 16], "body_transformer.blocks.0.mlp.2.weight": [16, 64]},
    ),
    "no head": ({"head": {"n_layer": 0, "block": {"n_head": 2}}}, {}),
}
ABSENT = {
    "shared tokens": ("input_mlp.", "head_mlp.", "tok_emb.offsets"),
    "tokens per depth": ("head_mlp.",),
    "no biases": ("body_transformer.blocks.0.attn.key.bias", "body_transformer.blocks.0.mlp.0.bias"),
    "no head": ("head_transformer.",),
    "published": ("tok_emb.", "cond_classifier."),
}


@pytest.fixture
def write(tmp_path, arch, build):
    """`write(layout, changes, ...)` -> (path to load, the model that was written, its tokenizer)."""

    def make(layout="published", changes=None, config=None, edit=lambda state: state, prefix="", mark=True):
        changes = changes or {}
        model, tokenizer = build(**changes)
        state = edit({prefix + name: tensor.clone() for name, tensor in model.state_dict().items()})
        OmegaConf.save(OmegaConf.create(config or {"arch": arch(**changes)}), tmp_path / "config.yaml")
        if layout == "published":
            torch.save({"state_dict": state}, tmp_path / "model.pt")
            return tmp_path / "model.pt", model, tokenizer
        save_file(state, tmp_path / "model.safetensors")
        if mark:
            (tmp_path / "COMPLETE").touch()
        return tmp_path, model, tokenizer

    return make


@pytest.mark.parametrize("layout", ["published", "snapshot"])
@pytest.mark.parametrize("name", KEY_VARIANTS)
def test_every_key_variant_is_read(name, layout, write, random_codes):
    changes, shapes = KEY_VARIANTS[name]
    path, model, tokenizer = write(layout, changes)
    loaded = load_rqtransformer(path)
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    state = loaded.state_dict()
    assert {key: list(state[key].shape) for key in shapes} == shapes
    for beginning in ABSENT.get(name, ()):
        assert not any(key.startswith(beginning) for key in state), beginning
    codes = random_codes(model)
    assert torch.equal(loaded(codes, tokenizer).logits, model(codes, tokenizer).logits)
    sample(loaded, tokenizer, num_samples=1)


def test_directory_with_one_published_file_and_module_prefix(write, random_codes):
    path, model, tokenizer = write(prefix="module.")
    loaded = load_rqtransformer(path.parent)
    codes = random_codes(model)
    assert torch.equal(loaded(codes, tokenizer).logits, model(codes, tokenizer).logits)


def test_vocabulary_of_the_dataset_section(write, arch):
    sections = {"arch": arch(vocab_size=None), "dataset": {"type": "digits", "vocab_size": 11}}
    assert load_rqtransformer(write(config=sections)[0]).config.vocab_sizes == [11] * 3


def test_averaged_weights_of_a_snapshot(write, tmp_path):
    path, model, _ = write("snapshot")
    with pytest.raises(ValueError, match=r"has no averaged weights \(model_ema.safetensors\)"):
        load_rqtransformer(path, ema=True)
    save_file({name: 2 * tensor for name, tensor in model.state_dict().items()}, tmp_path / "model_ema.safetensors")
    loaded = load_rqtransformer(path, ema=True)
    assert torch.equal(loaded.pos_emb_hw, 2 * model.pos_emb_hw)


def test_loaded_tensors_are_independent_of_each_other(write):
    def alias(state):
        state["body_transformer.blocks.1.ln1.weight"] = state["body_transformer.blocks.0.ln1.weight"]
        return state

    loaded = load_rqtransformer(write(edit=alias)[0])
    with torch.no_grad():
        loaded.body_transformer.blocks[0].ln1.weight.zero_()
    assert loaded.body_transformer.blocks[1].ln1.weight.ne(0).all()


def test_sampling_settings_prefer_what_is_given(write, arch):
    sections = {"arch": arch(), "sampling": {"temp": 0.9, "top_k": [3, 2, 1], "top_p": 0.8}}
    model = load_rqtransformer(write(config=sections)[0])
    assert model.sampling_defaults == {"temp": 0.9, "top_k": [3, 2, 1], "top_p": 0.8}
    assert sampling_settings(model, top_p=0.5, top_k=None) == {"temperature": 0.9, "top_k": [3, 2, 1], "top_p": 0.5}


def test_all_mismatches_are_named(write):
    def damage(state):
        state["head_mlp.wieght"] = state.pop("head_mlp.weight")
        state["pos_emb_d"] = state["pos_emb_d"][:, :2].contiguous()
        return state

    with pytest.raises(ValueError) as error:
        load_rqtransformer(write(edit=damage)[0])
    for part in (
        "missing head_mlp.weight (is it head_mlp.wieght?)",
        "unexpected head_mlp.wieght",
        "pos_emb_d is [1, 2, 16], the config wants [1, 3, 16]",
    ):
        assert part in str(error.value)


def test_missing_and_damaged_files_are_named(write, tmp_path, arch):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_rqtransformer(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="it holds 0"):
        load_rqtransformer(tmp_path)
    path, _, _ = write()
    with pytest.raises(ValueError, match="no 'state_dict_ema'; it has state_dict"):
        load_rqtransformer(path, ema=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_rqtransformer(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_rqtransformer(path)
    write()
    config = tmp_path / "config.yaml"
    for text, message in (
        ("1:30", "holds no sections"),
        ("arch: [", "not a valid YAML"),
        ("a: 1", "no 'arch' section"),
        ("arch: {type: rq-vae}", "'rq-vae', not 'rq-transformer'"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rqtransformer(path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        load_rqtransformer(path)


def test_incomplete_and_damaged_snapshots_are_refused(write):
    path, _, _ = write("snapshot", mark=False)
    with pytest.raises(ValueError, match="no COMPLETE mark"):
        load_rqtransformer(path)
    (path / "COMPLETE").touch()
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load_rqtransformer(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_rqtransformer(path)


class _Anything:
    pass


def test_checkpoints_that_would_run_code_are_refused(write):
    path, _, _ = write()
    torch.save({"state_dict": _Anything()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_rqtransformer(path)
