"""The RQ-VAE as a module: shapes, modes, memory formats, precision, and that it learns."""

import copy

import pytest
import torch
from torch.nn import functional as F

from rqvae import RQVAE, RQVAEConfig
from rqvae.blocks import Downsample, Upsample
from rqvae.model import count_parameters

BASE = {
    "embed_dim": 8,
    "n_embed": 16,
    "latent_shape": [4, 4, 8],
    "code_shape": [4, 4, 3],
    "shared_codebook": True,
    "codebook_update": "deferred",
    "restart_unused_codes": True,
    "loss_type": "mse",
    "ddconfig": {
        "z_channels": 8,
        "resolution": 8,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
    },
}


def make(ddconfig=None, **changes):
    settings = copy.deepcopy(BASE)
    settings.update(changes)
    settings["ddconfig"].update(ddconfig or {})
    return RQVAE(RQVAEConfig.from_mapping(settings))


def images(batch=2):
    return torch.rand(batch, 3, 8, 8) * 2 - 1


def test_resampling_without_convolutions():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    halved = Downsample(1, with_conv=False)(x)
    assert torch.equal(halved, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))  # means of 2 x 2
    assert torch.equal(Upsample(1, with_conv=False)(halved), halved.repeat_interleave(2, -1).repeat_interleave(2, -2))
    model = make({"resamp_with_conv": False}).eval()
    missing = set(make().state_dict()) - set(model.state_dict())
    assert missing == {
        f"{layer}.conv.{name}"
        for layer in ("encoder.down.0.downsample", "decoder.up.1.upsample")
        for name in ("weight", "bias")
    }
    assert model(images()).recon.shape == (2, 3, 8, 8)


def test_shapes_and_consistency_of_all_calls():
    model, x = make().eval(), images()
    with torch.no_grad():
        out = model(x)
        z = model.encode(x)
    codes = model.get_codes(x)
    assert out.recon.shape == x.shape
    assert z.shape == (2, 4, 4, 8)
    assert torch.equal(codes, out.quantizer_output.codes)
    assert torch.equal(model.quantize(z).codes, codes)
    assert torch.equal(model.embed_code(codes), out.quantizer_output.quantized)
    assert torch.equal(model.decode_code(codes), out.recon)
    assert model.codebook(2).shape == (16, 8)
    residual, target = model.get_latent_targets(x)
    assert torch.equal(target, codes)
    torch.testing.assert_close(residual[..., 0, :], z)
    torch.testing.assert_close(residual[..., 1, :], z - model.embed_code_with_depth(codes)[..., 0, :])
    assert model.get_soft_codes(x, 0.5, True)[0].shape == (2, 4, 4, 3, 16)
    assert torch.equal(model.decode_partial_code(codes, 2, "add"), out.recon)
    assert model.decoder_last_layer is model.decoder.conv_out.weight


def test_partial_codes_are_checked():
    model, codes = make().eval(), torch.zeros(1, 4, 4, 3, dtype=torch.int64)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"code_idx must be a whole number from 0 to 2, got {index}"):
            model.decode_partial_code(codes, index, "add")
    with pytest.raises(ValueError, match="decode_type 'sum' is not one of select, add"):
        model.decode_partial_code(codes, 0, "sum")


def test_images_that_do_not_fit():
    model = make()
    for shape in ((2, 1, 8, 8), (2, 3, 9, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) with H divisible by 2, W divisible by 2"):
            model(torch.zeros(shape))
    assert model(torch.zeros(1, 3, 16, 12)).recon.shape == (1, 3, 16, 12)


def test_code_grid_smaller_than_the_latent_grid():
    model, x = make(code_shape=[2, 4, 2]).eval(), images()
    out = model(x)
    assert out.quantizer_output.codes.shape == (2, 2, 4, 2)
    assert model.codebook(0).shape == (16, 16)
    assert model.embed_code_with_depth(out.quantizer_output.codes).shape == (2, 2, 4, 2, 16)
    assert torch.equal(model.embed_code(out.quantizer_output.codes), out.quantizer_output.quantized)


def test_images_are_checked_in_height_and_width_against_the_code_grid():
    model = make(code_shape=[4, 2, 2])
    with pytest.raises(ValueError, match="H divisible by 2, W divisible by 4"):
        model(torch.zeros(1, 3, 8, 10))
    assert model(torch.zeros(1, 3, 10, 8)).recon.shape == (1, 3, 10, 8)


def test_activation_checkpointing_gives_the_same_gradients():
    plain, recomputing = make(), make(checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    x = images()
    saved = {}
    for model in (plain, recomputing):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            out = model(x)
            loss = F.mse_loss(out.recon, x) + out.quantizer_output.loss
        loss.backward()
        saved[model] = sum(sizes)
    for (name, one), two in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=name)
    assert saved[recomputing] < 0.5 * saved[plain]


def test_channels_last_gives_the_same_result():
    model, x = make().eval(), images()
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    actual = model(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(actual.quantizer_output.codes, expected.quantizer_output.codes)
    torch.testing.assert_close(actual.recon, expected.recon, atol=1e-5, rtol=0)
    assert actual.recon.is_contiguous(memory_format=torch.channels_last)


def test_reduced_precision():
    model, x = make().eval(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.quantizer_output.quantized.dtype == torch.bfloat16
    assert out.quantizer_output.loss.dtype == torch.float32
    model.bfloat16()
    assert model.codebook(0).dtype == torch.float32
    codes = model.get_codes(x.bfloat16())
    image = model.decode_code(codes)
    assert image.dtype == torch.bfloat16
    assert image.isfinite().all()


def test_double_z_and_dropout():
    model, x = make({"double_z": True, "dropout": 0.5}), images()
    assert model.encoder.conv_out.out_channels == 16
    assert model.quant_conv.in_channels == 16
    one, two = model(x).recon, model(x).recon
    assert not torch.equal(one, two)
    model.eval()
    assert torch.equal(model(x).recon, model(x).recon)


def test_no_bottleneck():
    model, x = make(bottleneck_type="none").eval(), images()
    out = model(x)
    assert torch.equal(out.recon, model.decode(model.encode(x)))
    assert out.quantizer_output.codes.shape == (2, 4, 4, 0)
    assert model.config.depth == 0
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_codebooks_are_counted_once_with_their_padding_row():
    separate, shared = make(shared_codebook=False), make()
    learned = sum(p.numel() for p in shared.parameters())
    assert count_parameters(shared) == learned + 17 * 8
    assert count_parameters(separate) == learned + 3 * 17 * 8


def test_only_convolutions_and_norms_are_trained():
    model = make()
    assert all(p.requires_grad for p in model.parameters())
    assert not any("quantizer" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("update", ["deferred", "per_depth"])
def test_overfits_one_batch(update):
    torch.manual_seed(1)
    model, x = make(codebook_update=update), images(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(60):
        out = model(x)
        recon = F.mse_loss(out.recon, x)
        optimizer.zero_grad()
        (recon + 0.25 * out.quantizer_output.loss).backward()
        optimizer.step()
        model.update_codebook()
        losses.append(recon.item())
    assert losses[-1] < 0.2 * losses[0], losses[::10]


def test_a_skipped_step_leaves_the_codebook_alone():
    model = make()
    before = model.codebook(0).clone()
    model(images())
    model.discard_codebook_update()
    model.update_codebook()
    assert torch.equal(model.codebook(0), before)


def test_state_survives_a_copy():
    model = make()
    model(images())
    twin = copy.deepcopy(model)
    for one in (model, twin):
        one.update_codebook()
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
