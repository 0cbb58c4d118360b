"""Names, sizes, initialisation and variants of the patch discriminator."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from rqvae.losses.config import DiscriminatorConfig, GANConfig
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.losses.normalization import ActNorm


def expand(pattern: str, count: int) -> list[str]:
    """`main.{3,6}.weight` -> both names."""
    if count == 1:
        return [pattern]
    before, choices, after = pattern.replace("}", "{").split("{")
    return [before + choice + after for choice in choices.split(",")]


def test_published_state_dict_on_the_meta_device(golden_keys):
    published = golden_keys["discriminator"]
    with torch.device("meta"):
        model = PatchDiscriminator.from_config(DiscriminatorConfig())
    expected = {
        name: (tuple(shape), getattr(torch, dtype))
        for pattern, shape, dtype, count in published["keys"]
        for name in expand(pattern, count)
    }
    assert {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()} == expected
    assert sum(param.numel() for param in model.parameters()) == published["parameters"]


def test_published_names_with_actnorm():
    state = PatchDiscriminator.from_config(DiscriminatorConfig(use_actnorm=True, ndf=4)).state_dict()
    for layer, channels in ((3, 8), (6, 16)):
        assert state[f"main.{layer}.loc"].shape == state[f"main.{layer}.scale"].shape == (1, channels, 1, 1)
        assert state[f"main.{layer}.initialized"].dtype == torch.uint8
        assert f"main.{layer - 1}.bias" in state
    assert len(state) == 2 * 3 + 4 * 2


def test_sync_batchnorm_loads_a_batchnorm_checkpoint_and_agrees_in_one_process():
    batch = PatchDiscriminator(ndf=4)
    sync = PatchDiscriminator.from_config(DiscriminatorConfig(sync_batchnorm=True, ndf=4))
    sync.load_state_dict(batch.state_dict(), strict=True)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(sync(image), batch(image))
    assert torch.equal(sync.main[3].running_var, batch.main[3].running_var)


@pytest.mark.parametrize(("num_layers", "size", "width"), [(1, 14, 16), (2, 6, 32), (3, 2, 64), (4, 2, 64)])
def test_depth_and_width(num_layers, size, width):
    """Each stride-2 layer halves the map, the two stride-1 layers take one pixel each; width stops at 8 * ndf."""
    model = PatchDiscriminator(num_layers=num_layers, ndf=8)
    assert model.main[-1].in_channels == width
    image = torch.zeros(2, 3, 64 if num_layers == 4 else 32, 64 if num_layers == 4 else 32)
    assert model(image).shape == (2, 1, size, size)


def test_initialisation():
    model = PatchDiscriminator(ndf=32)
    assert model.main[5].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.main[6].weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert model.main[6].weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.main[6].bias.any()


def test_spectral_norm_bounds_every_convolution():
    model = PatchDiscriminator(ndf=4, spectral_norm=True)
    for _ in range(20):  # power iterations
        model(torch.randn(2, 3, 32, 32))
    model.eval()
    convolutions = [layer for layer in model.main if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    for layer in convolutions:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
        assert norm == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"num_layers": 0}, {"ndf": 0}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match="discriminator.*(layer|0)"):
        PatchDiscriminator(**options)


def test_two_norms_exclude_each_other():
    with pytest.raises(ValueError, match="use_actnorm and sync_batchnorm"):
        PatchDiscriminator.from_config(DiscriminatorConfig(use_actnorm=True, sync_batchnorm=True))


def test_section_is_strict():
    with pytest.raises(Exception, match="n_layers"):
        OmegaConf.merge(OmegaConf.structured(GANConfig), {"disc": {"arch": {"n_layers": 3}}})


def test_actnorm_normalises_its_first_batch_only():
    norm, first = ActNorm(3), 5 * torch.randn(4, 3, 8, 8) + 2
    output = norm(first)
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.transpose(0, 1).flatten(1).std(1), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(first + 7), output + 7 * norm.scale, atol=1e-4, rtol=1e-4)


def test_actnorm_keeps_loaded_values():
    trained, fresh = ActNorm(2), ActNorm(2)
    trained(3 * torch.randn(4, 2, 4, 4) + 1)
    fresh.eval()(torch.randn(4, 2, 4, 4))  # eval mode does not initialise
    assert fresh.initialized.item() == 0
    fresh.train().load_state_dict(trained.state_dict())
    fresh(torch.randn(4, 2, 4, 4))
    assert torch.equal(fresh.loc, trained.loc)
    assert torch.equal(fresh.scale, trained.scale)


def test_actnorm_initialises_again_after_loading_an_untrained_state():
    norm, untrained = ActNorm(2), ActNorm(2).state_dict()
    norm(torch.randn(4, 2, 4, 4))
    norm.load_state_dict(untrained)
    shifted = norm(torch.randn(4, 2, 4, 4) + 9)
    assert shifted.mean().abs().item() < 1e-5
