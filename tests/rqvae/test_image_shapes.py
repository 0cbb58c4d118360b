"""RQ-VAEs of images that are not square: maps, codes, configs, and what is refused."""

from __future__ import annotations

import pytest
import torch

from rqvae import RQVAE, load_rqvae
from rqvae.config import RQVAEConfig

ARCH = {
    "embed_dim": 8,
    "n_embed": 16,
    "latent_shape": [12, 8, 8],
    "code_shape": [6, 8, 2],
    "ddconfig": {
        "z_channels": 8,
        "resolution": [24, 16],
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
    },
}


def changed(**values) -> dict:
    inner = {name: values.pop(name) for name in [*values] if name in ARCH["ddconfig"]}
    return {**ARCH, **values, "ddconfig": {**ARCH["ddconfig"], **inner}}


def test_codes_have_the_shape_of_the_images(tmp_path):
    torch.manual_seed(0)
    model = RQVAE(RQVAEConfig.from_mapping(ARCH)).eval()
    image_BCHW = torch.rand(3, 3, 24, 16) * 2 - 1
    codes_BhwD = model.get_codes(image_BCHW)
    assert codes_BhwD.shape == (3, 6, 8, 2)
    assert model.encode(image_BCHW).shape == (3, 12, 8, 8)
    with torch.no_grad():
        recon_BCHW = model(image_BCHW).recon
    assert recon_BCHW.shape == image_BCHW.shape
    assert torch.allclose(model.decode_code(codes_BhwD), recon_BCHW, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = load_rqvae(tmp_path)
    assert again.config.ddconfig.image_size == (24, 16) and again.config.ddconfig.resolution == [24, 16]
    assert torch.equal(again.get_codes(image_BCHW), codes_BhwD)


def test_rows_stay_rows():
    """What changes at the top of an image changes the top of its map."""
    torch.manual_seed(0)
    model = RQVAE(RQVAEConfig.from_mapping(changed(code_shape=[12, 8, 2], attn_resolutions=[]))).eval()
    model.encoder.mid.attn_1 = torch.nn.Identity()
    for norm in [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]:
        norm.forward = lambda x_BCHW: x_BCHW  # attention and normalisation look at whole maps
    image_BCHW = torch.rand(1, 3, 24, 16) * 2 - 1
    other_BCHW = image_BCHW.clone()
    other_BCHW[..., 0, :] += 1.0
    changed_HW = (model.encode(image_BCHW) - model.encode(other_BCHW)).abs().amax(-1)[0] > 0
    assert changed_HW[0].all() and not changed_HW[-1].any()


def test_attention_goes_by_the_shorter_side():
    levels = [len(level.attn) for level in RQVAE(RQVAEConfig.from_mapping(ARCH)).encoder.down]
    assert levels == [0, 1]
    other = changed(resolution=[16, 24], latent_shape=[8, 12, 8], code_shape=[8, 12, 2])
    assert [len(level.attn) for level in RQVAE(RQVAEConfig.from_mapping(other)).decoder.up] == [0, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(resolution=[24, 15]), r"ddconfig.resolution \[24, 15\] is not divisible by 2"),
        (dict(resolution=[23, 16]), "is not divisible by 2"),
        (
            dict(resolution=[16, 24]),
            r"latent_shape \[12, 8, 8\] does not fit: resolution \[16, 24\]",
        ),
        (dict(resolution=[24]), "ddconfig.resolution must be a side in pixels or .height, width., not"),
        (dict(resolution="24x16"), "ddconfig.resolution must be a side in pixels"),
        (dict(resolution=-8), "ddconfig.resolution must be at least 1"),
        (dict(code_shape=[5, 8, 2]), "does not divide latent_shape"),
    ],
)
def test_sizes_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message) as told:
        RQVAEConfig.from_mapping(changed(**values))
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_images_of_another_shape_are_refused_where_they_do_not_divide():
    model = RQVAE(RQVAEConfig.from_mapping(ARCH))
    with pytest.raises(ValueError, match="H divisible by 4, W divisible by 2, got"):
        model.get_codes(torch.zeros(1, 3, 22, 16))
