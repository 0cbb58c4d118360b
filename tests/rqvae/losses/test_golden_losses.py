"""Discriminator, adversarial losses, adaptive weight and term averages against the reference numbers `losses`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from rqvae.losses.adversarial import (
    adaptive_weight,
    discriminator_loss_by_name,
    generator_loss_by_name,
)
from rqvae.losses.config import GANConfig
from rqvae.losses.discriminator import PatchDiscriminator

DISC_WEIGHT = 0.75


@pytest.fixture
def losses(golden):
    return golden("losses")


@pytest.fixture
def gan(losses) -> GANConfig:
    """The published `gan` section through the structured schema."""
    merged = OmegaConf.merge(OmegaConf.structured(GANConfig), losses.config.gan)
    return OmegaConf.to_object(merged)


@pytest.fixture
def discriminator(losses, gan) -> PatchDiscriminator:
    model = PatchDiscriminator.from_config(gan.disc.arch)
    model.load_state_dict(losses.checkpoint["discriminator"], strict=True)
    return model


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_config_is_the_published_section(gan):
    assert (gan.loss.disc_loss, gan.loss.gen_loss, gan.loss.disc_weight) == ("hinge", "vanilla", DISC_WEIGHT)
    assert gan.disc.arch.ndf == 16


def test_eval_logits_and_losses(losses, gan, discriminator):
    discriminator.eval()
    fake, real = discriminator(losses.io["disc.x_fake"]), discriminator(losses.io["disc.x_real"])
    close(fake, losses.io["disc.eval.logits_fake"], 1e-5)
    close(real, losses.io["disc.eval.logits_real"], 1e-5)
    gen = generator_loss_by_name(gan.loss.gen_loss)
    for reduction, hinge_atol, other_atol in (("mean", 2e-6, 1e-6), ("sum", 2e-4, 1e-4)):
        for name, atol in (("hinge", hinge_atol), ("vanilla", other_atol)):
            loss = discriminator_loss_by_name(name)(real, fake, reduction)
            close(loss, losses.io[f"disc.eval.{name}_d.{reduction}"], atol)
        close(gen(fake, reduction), losses.io[f"disc.eval.gen.{reduction}"], other_atol)


def test_training_step(losses, discriminator):
    """Fake batch first, then the real one; weighted hinge loss; one Adam step."""
    io = losses.io
    discriminator.train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    fake, real = discriminator(io["disc.x_fake"]), discriminator(io["disc.x_real"])
    close(fake, io["disc.train.logits_fake"], 1e-5)
    close(real, io["disc.train.logits_real"], 1e-5)
    hinge = discriminator_loss_by_name("hinge")(real, fake)
    close(hinge, io["disc.train.hinge_d"], 2e-6)
    close(discriminator_loss_by_name("vanilla")(real, fake), io["disc.train.vanilla_d"], 1e-6)
    close(generator_loss_by_name("vanilla")(fake), io["disc.train.gen"], 1e-6)
    (DISC_WEIGHT * hinge).backward()
    for name, atol in (("main.0.weight", 2e-7), ("main.8.weight", 5e-7)):
        close(discriminator.get_parameter(name).grad, io[f"disc.train.grad.{name}"], atol)
    buffers = dict(discriminator.named_buffers())
    for layer, mean_atol, var_atol in ((3, 5e-7, 2e-6), (6, 1e-6, 2e-6)):
        after = f"disc.train.after.main.{layer}"
        close(buffers[f"main.{layer}.running_mean"], io[f"{after}.running_mean"], mean_atol)
        close(buffers[f"main.{layer}.running_var"], io[f"{after}.running_var"], var_atol)
        assert torch.equal(buffers[f"main.{layer}.num_batches_tracked"], io[f"{after}.num_batches_tracked"])
    optimizer.step()
    close(discriminator.main[8].weight, io["disc.step.after.main.8.weight"], 2e-7)


def test_adaptive_weight(losses, discriminator):
    io = losses.io
    last_layer = io["aw.last_layer"].clone().requires_grad_()
    discriminator.train()
    recon = F.conv2d(io["aw.h"], last_layer, padding=1)
    nll = F.mse_loss(recon, io["aw.x"])
    gen = -discriminator(recon).mean()
    close(recon, io["aw.recon"], 5e-6)
    close(nll, io["aw.nll_loss"], 1e-6)
    close(gen, io["aw.g_loss"], 1e-6)
    close(torch.autograd.grad(nll, last_layer, retain_graph=True)[0], io["aw.nll_grad"], 1e-6)
    close(torch.autograd.grad(gen, last_layer, retain_graph=True)[0], io["aw.g_grad"], 2e-6)
    close(adaptive_weight(nll, gen, last_layer), io["aw.weight"], 1e-6)
    close(adaptive_weight(nll, 1e-5 * gen, last_layer), io["aw.weight_small_g"], 1e-2)
    close(adaptive_weight(1e6 * nll, gen, last_layer), io["aw.weight_clamped"], 1e-2)
