"""The multi-scale quantizer as the bottleneck of an RQ-VAE: a training step, codes, images, targets, a wrong config."""

import pytest
import torch

from rqvae import RQVAE, RQVAEConfig


def _config(**changes):
    hparams = {
        "bottleneck_type": "hierarchical",
        "embed_dim": 8,
        "n_embed": 16,
        "latent_shape": [4, 4, 8],
        "code_shape": [1, 1, 21],
        "bottleneck": {"scales": [1, [2, 2], 4]},
        **changes,
    }
    ddconfig = {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
    return RQVAEConfig.from_mapping({"type": "rq-vae", "hparams": hparams, "ddconfig": ddconfig})


CHANGES = [
    {},
    {"shared_codebook": True, "restart_unused_codes": True},
    {"bottleneck": {"scales": [1, 2, 4], "codebook": "learned", "num_convs": 2, "scale_dropout": 0.5}},
    {"bottleneck": {"scales": [1, 2, 4], "distance": "cosine", "kmeans_init": True}, "shared_codebook": True},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_one_step_then_codes_images_and_targets(changes):
    model, images = RQVAE(_config(**changes)).train(), torch.rand(2, 3, 8, 8) * 2 - 1
    out = model(images)
    ((out.recon - images).square().mean() + out.quantizer_output.loss).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    model.update_codebook()
    model.eval()
    codes = model.get_codes(images)
    assert codes.shape == (2, 1, 1, 21) and (codes >= 0).all()
    assert torch.equal(model.decode_code(codes), model(images).recon)
    assert torch.equal(model.decode_partial_code(codes, 20, "add"), model(images).recon)
    assert model.decode_partial_code(codes, 3, "select").shape == images.shape
    assert model.embed_code_with_depth(codes).shape == (2, 1, 1, 21, 8)
    probs, soft = model.get_soft_codes(images, temp=0.5)
    assert torch.equal(soft, codes)
    torch.testing.assert_close(probs.sum(-1), torch.ones(codes.shape))
    assert model.quantizer.shared == changes.get("shared_codebook", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_shape": [1, 1, 20]}, r"bottleneck.scales have 21 positions: code_shape must be \[1, 1, 21\]"),
        ({"code_shape": [2, 2, 21]}, r"code_shape must be \[1, 1, 21\]"),
        ({"code_shape": [1, 1, 5], "bottleneck": {"scales": [1, 2]}}, r"last of bottleneck.scales, \[2, 2\], must be"),
        ({"bottleneck": {}}, "bottleneck.scales: .*missing mandatory value"),
        ({"bottleneck": {"scales": [4, 1]}}, "scales must not become coarser"),
        ({"bottleneck": {"scales": [1], "blends": 0.1}}, "unknown key bottleneck.blends; did you mean 'blend'"),
    ],
)
def test_wrong_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        RQVAE(_config(**changes))
