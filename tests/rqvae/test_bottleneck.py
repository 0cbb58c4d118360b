"""Every bottleneck of the table in an RQ-VAE: a training step, codes and images, stage-2 targets, saving, loading."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from rqstack.quantizers import InPatches, VectorQuantizer
from rqstack.snapshots import snapshot_tensors
from rqvae import RQVAE, RQVAEConfig, load_rqvae
from rqvae.bottleneck import BOTTLENECKS
from tests.rqvae.bottleneck_configs import CONFIGS

CASES = [(name, index) for name, configs in CONFIGS.items() for index in range(len(configs))]
CODE_GRIDS = [[4, 4, 2], [2, 4, 2], [2, 2, 2]]


def arch(name, settings=None, **changes):
    """A published `arch` section: images of 8 x 8, a latent grid of 4 x 4, two codes per position."""
    settings = CONFIGS[name][0] if settings is None else settings
    hparams = {"bottleneck_type": name, "embed_dim": 8, "latent_shape": [4, 4, 8], "code_shape": [4, 4, 2]}
    return {
        "type": "rq-vae",
        "hparams": {**hparams, **copy.deepcopy(settings), **changes},
        "ddconfig": {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1},
    }


def stage1(name, settings=None, **changes):
    return RQVAEConfig.from_mapping(arch(name, settings, **changes))


def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def trained(name, index, code_shape):
    """A model after one training step, and the output of that step."""
    torch.manual_seed(0)
    model = RQVAE(stage1(name, CONFIGS[name][index], code_shape=code_shape)).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    out = model(images())
    ((out.recon - images()).square().mean() + out.quantizer_output.loss).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    optimizer.step()
    model.update_codebook()
    return model, out


def test_every_bottleneck_is_tried():
    """The multi-scale one takes other code shapes: `test_multi_scale_bottleneck.py`."""
    assert {*CONFIGS, "hierarchical"} == {*BOTTLENECKS} - {"none"}


@pytest.mark.parametrize("code_shape", CODE_GRIDS, ids=str)
@pytest.mark.parametrize(("name", "index"), CASES)
def test_one_step_then_codes_images_and_targets(name, index, code_shape):
    model, out = trained(name, index, code_shape)
    assert out.quantizer_output.codes.shape == (2, *code_shape)
    assert out.quantizer_output.quantized.shape == (2, 4, 4, 8)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    targets = model.get_latent_targets(images())[1]
    assert (targets >= 0).all(), "stage 2 sees every level, also of a model in train mode that drops some"
    model.eval()
    x = images()
    codes = model.get_codes(x)
    assert codes.shape == (2, *code_shape)
    assert torch.equal(model.decode_code(codes), model(x).recon)
    assert torch.equal(model.decode_partial_code(codes, 1, "add"), model(x).recon)
    assert model.decode_partial_code(codes, 0, "select").shape == x.shape
    parts = model.embed_code_with_depth(codes)
    assert parts.shape == (*codes.shape, 8 * 16 // (code_shape[0] * code_shape[1]))
    coarse = model.embed_code(codes[..., :1])
    assert torch.equal(model.decode(coarse), model.decode_partial_code(codes, 0, "add"))
    searched, again = model.get_latent_targets(x)
    assert torch.equal(again, codes)
    assert searched.shape[:-1] == codes.shape
    probs, soft = model.get_soft_codes(x, temp=0.5)
    assert torch.equal(soft, codes)
    torch.testing.assert_close(probs.sum(-1), torch.ones(codes.shape))
    sizes = torch.tensor(model.quantizer.num_codes)
    drawn = model.get_soft_codes(x, 1.0, True, torch.Generator().manual_seed(0))[1]
    assert ((drawn >= 0) & (drawn < sizes)).all()
    assert model.quantizer.restart_counts().shape == (2,)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_saved_model_gives_the_same_codes_and_images(name, index, tmp_path):
    """Buffers that are not saved (grids, counters) come back too."""
    code_shape = [2, 2, 2]
    model, _ = trained(name, index, code_shape)
    save_file(snapshot_tensors(model), tmp_path / "model.safetensors")
    section = arch(name, CONFIGS[name][index], code_shape=code_shape)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"arch": section})))
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "COMPLETE").touch()
    loaded, model = load_rqvae(tmp_path), model.eval()
    codes = model.get_codes(images())
    assert torch.equal(loaded.get_codes(images()), codes)
    assert torch.equal(loaded.decode_code(codes), model.decode_code(codes))
    for (key, value), other in zip(model.quantizer.named_buffers(), loaded.quantizer.buffers(), strict=True):
        assert "num_restarts" in key or torch.equal(value, other), key


@pytest.mark.parametrize("name", [name for name, configs in CONFIGS.items() if "bottleneck" in configs[-1]])
def test_wrong_options_are_one_line(name):
    options = CONFIGS[name][-1]["bottleneck"]
    known = next(iter(options))
    with pytest.raises(ValueError, match=rf"unknown key bottleneck.{known}x; did you mean '{known}'\?"):
        stage1(name, bottleneck={**options, f"{known}x": 1})
    with pytest.raises(ValueError, match=rf"bottleneck.{known}"):
        stage1(name, bottleneck={**options, known: {"many": 1}})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fsq", {"bottleneck": {}}, "bottleneck.levels: .*missing mandatory value"),
        ("lfq", {"n_embed": None}, "missing value: n_embed"),
        ("fsq", {"n_embed": 999}, "n_embed 999 does not fit: the bottleneck has 1000 codes"),
        ("lfq", {"n_embed": 1000}, "power of two"),
        ("residual_simvq", {"bottleneck": {"groups": 3}}, "groups 3 does not divide code depth 2 and vectors"),
        ("residual_vq", {"bottleneck": {"groups": 3}}, "groups 3 does not divide code depth 2 and vectors"),
        ("fsq", {"bottleneck_type": "rq"}, "bottleneck_type 'rq' takes no bottleneck options"),
        ("fsq", {"bottleneck_type": "fqs"}, "bottleneck_type 'fqs' is not one of rq, none, vq, fsq"),
        ("vq", {"n_embed": [16, 8]}, "n_embed must be one number for bottleneck_type 'vq'"),
        ("vq", {"decay": [0.9, 0.8]}, "decay must be one number for bottleneck_type 'vq'"),
        ("vq", {"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ("vq", {"code_shape": [4, 4, 3]}, "cannot be cut into 3 heads"),
        ("vq", {"bottleneck": {"distance": "l1"}}, "distance 'l1' is not one of euclidean, cosine"),
        ("vq", {"bottleneck": {"restart": {"bellow": 1.0}}}, "unknown key bottleneck.restart.bellow; did you mean 'be"),
        ("vq", {"bottleneck": {"losses": {"commit": 1.0}}}, "unknown key bottleneck.losses.commit; did you mean 'com"),
        ("vq", {"bottleneck": {"codebook": "learned", "inplace_lr": 0.0}}, "inplace_lr must be positive, got 0.0"),
        ("residual_vq", {"bottleneck": {"dropout_cutoff": 2}}, r"dropout_cutoff must be in 0 \.\. 1"),
    ],
)
def test_values_that_do_not_fit_are_one_line(name, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        RQVAE(stage1(name, **changes))
    assert "\n" not in str(error.value)


def test_without_a_bottleneck_there_is_nothing_to_ask_for():
    model, x = RQVAE(stage1("rq", {"n_embed": 16}, bottleneck_type="none")).eval(), images()
    assert model(x).recon.shape == x.shape
    for ask in (model.get_codes, model.get_latent_targets, model.get_soft_codes):
        with pytest.raises(ValueError, match="bottleneck_type 'none' has no codes; choose 'rq'"):
            ask(x)
    with pytest.raises(ValueError, match="bottleneck_type 'none' has no codebook"):
        model.codebook(0)


def test_patches_need_a_grid_of_whole_ones():
    with pytest.raises(ValueError, match=r"patches of 2 x 2 need a \(B, H, W, E\) grid of them, got \(2, 3, 4, 5\)"):
        InPatches(VectorQuantizer(20, 4), (2, 2))(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="every number of patch must be a whole number of at least 1, got 0"):
        InPatches(VectorQuantizer(20, 4), (0, 2))
