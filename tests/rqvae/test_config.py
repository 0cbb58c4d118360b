"""RQVAEConfig: published sections, defaults, and one clear line for everything that does not fit."""

import copy

import pytest
import torch
from omegaconf import OmegaConf

from rqvae import RQVAE, RQVAEConfig
from rqvae.config import ArchConfig, DDConfig

ARCH = {
    "type": "rq-vae",
    "ema": 0.999,
    "hparams": {
        "embed_dim": 8,
        "n_embed": 16,
        "latent_shape": [4, 4, 8],
        "code_shape": [4, 4, 3],
        "use_padding_idx": False,
        "masked_dropout": 0.0,
    },
    "ddconfig": {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
}


def arch(**changes):
    """ARCH with changed values, keys written with double underscores for nesting."""
    changed = copy.deepcopy(ARCH)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = changed
        for part in path:
            section = section[part]
        section[last] = value
    return changed


def test_published_defaults_of_missing_keys():
    config = RQVAEConfig.from_mapping(ARCH)
    assert config.decay == 0.99
    assert config.loss_type == "l1"
    assert config.latent_loss_weight == 0.25
    assert config.bottleneck_type == "rq"
    assert config.codebook_update == "per_depth"
    assert not (config.shared_codebook or config.restart_unused_codes or config.checkpointing)
    assert config.ddconfig == DDConfig(False, 8, 8, 3, 3, 32, [1, 1], 1, [], 0.0)
    assert config.code_sizes == (16, 16, 16)
    assert config.decays == (0.99, 0.99, 0.99)


def test_flat_mapping_arch_section_and_omegaconf_agree():
    flat = {**ARCH["hparams"], "ddconfig": ARCH["ddconfig"], "checkpointing": True}
    expected = RQVAEConfig.from_mapping(arch(checkpointing=True))
    assert RQVAEConfig.from_mapping(flat) == expected
    assert RQVAEConfig.from_mapping(OmegaConf.create(arch(checkpointing=True))) == expected
    assert RQVAEConfig.from_mapping({**flat, "ddconfig": DDConfig(**ARCH["ddconfig"])}) == expected
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ArchConfig), arch(checkpointing=True)))
    assert typed.model_config() == expected
    assert typed.ema == 0.999


def test_one_value_per_depth():
    config = RQVAEConfig.from_mapping(arch(hparams__n_embed=[16, 8, 4], hparams__decay=[0.9, 0.8, 0]))
    model = RQVAE(config)
    assert [book.weight.shape[0] for book in model.quantizer.codebooks] == [16, 8, 4]
    assert [book.decay for book in model.quantizer.codebooks] == [0.9, 0.8, 0.0]
    assert model.quantizer.num_codes == (16, 8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hparams__n_embd": 16}, r"unknown key arch\.hparams\.n_embd; did you mean 'n_embed'"),
        ({"ddconfig__zzz": 1}, r"unknown key arch\.ddconfig\.zzz; known keys: double_z"),
        ({"hparam": {}}, r"unknown key arch\.hparam; did you mean 'hparams'"),
        ({"hparams__embed_dim": "wide"}, r"arch\.hparams\.embed_dim: .*'wide'"),
        ({"ddconfig__ch_mult": "ab"}, r"arch\.ddconfig\.ch_mult"),
        ({"hparams__embed_dim": "???"}, r"arch\.hparams\.embed_dim: .*missing mandatory value"),
        ({"ddconfig__resolution": "???"}, r"arch\.ddconfig\.resolution: .*missing mandatory value"),
        ({"type": "vq-gan"}, r"arch\.type must be 'rq-vae', got 'vq-gan'"),
        ({"code_hier": 2}, r"code_hier must be 1"),
        ({"ddconfig__resolution": 9}, r"resolution 9 is not divisible by 2"),
        ({"ddconfig__resolution": 16}, r"latent_shape \[4, 4, 8\] does not fit.*give \[8, 8, 8\]"),
        ({"hparams__latent_shape": [4, 4]}, r"latent_shape needs three positive numbers"),
        ({"hparams__code_shape": [3, 3, 2]}, r"code_shape \[3, 3, 2\] does not divide latent_shape"),
        ({"hparams__code_shape": [4, 4, 0]}, r"code_shape needs three positive numbers"),
        ({"ddconfig__ch": 48}, r"ch 48 is not a multiple of 32"),
        ({"ddconfig__dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"ddconfig__ch_mult": []}, r"ch_mult needs positive entries"),
        ({"ddconfig__num_res_blocks": 0}, r"num_res_blocks must be a whole number of at least 1, got 0"),
        ({"hparams__n_embed": [16, 16]}, r"n_embed has 2 values for the 3 depths"),
        ({"hparams__n_embed": "many"}, r"n_embed must be int .*'many'"),
        ({"hparams__n_embed": 0}, r"every number of n_embed must be a whole number of at least 1, got 0"),
        ({"hparams__decay": 1.5}, r"decay must be in \[0, 1\)"),
        ({"hparams__decay": True}, r"decay must be float"),
        ({"hparams__n_embed": [4, 8, 4], "hparams__shared_codebook": True}, r"shared_codebook needs one n_embed"),
        ({"hparams__bottleneck_type": "vqq"}, r"bottleneck_type 'vqq' is not one of rq, none, vq"),
        ({"hparams__loss_type": "huber"}, r"loss_type 'huber' is not one of mse, l1"),
        ({"hparams__codebook_update": "never"}, r"codebook_update 'never' is not one of per_depth, deferred"),
        ({"hparams__use_padding_idx": True}, r"use_padding_idx true is not supported"),
        ({"hparams__masked_dropout": 0.1}, r"masked_dropout 0\.1 is not supported"),
        ({"hparams__latent_loss_weight": -1.0}, r"latent_loss_weight must not be negative"),
        (
            {"hparams__embed_dim": 0, "hparams__latent_shape": [4, 4, 1]},
            r"embed_dim must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_wrong_configs_are_one_line_errors(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        RQVAEConfig.from_mapping(arch(**changes))
    assert "\n" not in str(error.value)


def test_model_checks_a_config_made_by_hand():
    with pytest.raises(ValueError, match="missing value: embed_dim"):
        RQVAE(RQVAEConfig())
    with torch.device("meta"):
        assert RQVAE(RQVAEConfig.from_mapping(ARCH)).codebook(2).shape == (16, 8)
