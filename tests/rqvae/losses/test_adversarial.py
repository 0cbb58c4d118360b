"""Adversarial losses in closed form, the adaptive weight's guards, and the schedule of the adversarial game."""

from __future__ import annotations

import math

import pytest
import torch

from rqvae.losses.adversarial import (
    AdversarialSchedule,
    adaptive_generator_term,
    adaptive_weight,
    discriminator_loss_by_name,
    generator_loss_by_name,
)
from rqvae.losses.config import GANLossConfig
from rqvae.losses.reconstruction import reconstruction_loss


def test_hinge_ignores_patches_beyond_the_margin():
    real = torch.tensor([2.0, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, 1.0], requires_grad=True)
    loss = discriminator_loss_by_name("hinge")(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.5 + 1.0))
    assert real.grad.tolist() == [0.0, -0.25]
    assert fake.grad.tolist() == [0.0, 0.25]


def test_vanilla_of_an_undecided_discriminator_is_log_two():
    assert discriminator_loss_by_name("vanilla")(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(math.log(2))


def test_generator_losses():
    fake = torch.tensor([1.0, 3.0])
    assert generator_loss_by_name("vanilla")(fake).item() == -2.0
    assert generator_loss_by_name("non_saturating")(torch.zeros(4)).item() == pytest.approx(math.log(2))


def test_losses_of_half_precision_logits_are_float32():
    logits = torch.full((2,), 300.0, dtype=torch.float16)
    for name in ("hinge", "vanilla"):
        assert discriminator_loss_by_name(name)(logits, logits).dtype == torch.float32
    assert generator_loss_by_name("vanilla")(logits.repeat(1000), "sum").item() == -600_000.0  # beyond float16


@pytest.mark.parametrize("lookup", [discriminator_loss_by_name, generator_loss_by_name])
def test_unknown_names_list_the_choices(lookup):
    with pytest.raises(ValueError, match="'wasserstein'.*vanilla"):
        lookup("wasserstein")


def test_unknown_reduction():
    with pytest.raises(ValueError, match=r"'none'.*mean.*sum"):
        generator_loss_by_name("vanilla")(torch.zeros(1), "none")


@pytest.mark.parametrize(("loss_type", "expected"), [("mse", 5.0), ("l1", 2.0)])
def test_reconstruction_loss(loss_type, expected):
    recon, image = torch.tensor([1.0, 3.0]).half(), torch.zeros(2)
    loss = reconstruction_loss(recon, image, loss_type)
    assert (loss.dtype, loss.item()) == (torch.float32, expected)


def test_unknown_reconstruction_loss():
    with pytest.raises(ValueError, match=r"'l2'.*l1.*mse"):
        reconstruction_loss(torch.zeros(1), torch.zeros(1), "l2")


@pytest.fixture
def last_layer() -> torch.Tensor:
    return torch.tensor([3.0, 4.0], requires_grad=True)


def test_adaptive_weight_is_a_ratio_of_gradient_norms(last_layer):
    nll, gen = last_layer.square().sum(), last_layer.sum()
    weight = adaptive_weight(nll, gen, last_layer)
    assert weight.item() == pytest.approx(10.0 / (math.sqrt(2.0) + 1e-4), rel=1e-6)
    assert not weight.requires_grad
    (nll + weight * gen).backward()  # both graphs are still there


@pytest.mark.parametrize("which", ["nll", "gen"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_adaptive_weight_of_a_bad_gradient_is_zero(last_layer, which, bad):
    losses = {"nll": last_layer.square().sum(), "gen": last_layer.sum()}
    losses[which] = losses[which] * bad
    assert adaptive_weight(losses["nll"], losses["gen"], last_layer).item() == 0.0


def test_adaptive_weight_of_a_vanished_generator_gradient_is_bounded(last_layer):
    assert adaptive_weight(last_layer.square().sum(), 0.0 * last_layer.sum(), last_layer).item() == 1e4


def test_loss_scale_cancels_out(last_layer):
    nll, gen = last_layer.square().sum(), last_layer.sum()
    scaled = adaptive_weight(nll, gen, last_layer, loss_scale=torch.tensor(2.0**16))
    torch.testing.assert_close(scaled, adaptive_weight(nll, gen, last_layer), rtol=1e-6, atol=0)


def test_loss_scale_saves_small_half_precision_gradients():
    layer = torch.ones(4, dtype=torch.float16, requires_grad=True)
    nll, gen = 1e-9 * layer.float().sum(), 1e-3 * layer.float().sum()
    assert adaptive_weight(nll, gen, layer).item() == 0.0
    weight = adaptive_weight(nll, gen, layer, loss_scale=2.0**13)
    assert weight.item() == pytest.approx(2e-9 / 2.1e-3, rel=1e-2)


@pytest.mark.parametrize("in_place", [True, False])
def test_adaptive_weight_averages_gradients_before_their_norm(last_layer, in_place):
    """As if the mean over ranks were a quarter of this rank's `nll` gradient and 1.5 times its `gen` gradient."""
    nll, gen = last_layer.square().sum(), last_layer.sum()
    factors, shapes = torch.tensor([[0.25], [1.5]]), []

    def reduce(grads: torch.Tensor) -> torch.Tensor | None:
        shapes.append(tuple(grads.shape))
        if in_place:
            grads.mul_(factors)
            return None
        return grads * factors

    weight = adaptive_weight(nll, gen, last_layer, reduce=reduce)
    assert weight.item() == pytest.approx(2.5 / (1.5 * math.sqrt(2.0) + 1e-4), rel=1e-6)
    assert shapes == [(2, 2)]  # one collective for both


@pytest.fixture
def decoder() -> torch.nn.Sequential:
    torch.manual_seed(0)
    first, last = torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.Conv2d(5, 3, 3, padding=1)
    return torch.nn.Sequential(first, torch.nn.Tanh(), last)


class BadGradient(torch.autograd.Function):
    """What a discriminator in trouble sends back: its loss is finite, one value of its gradient is not."""

    @staticmethod
    def forward(ctx, values, bad):
        ctx.bad = bad
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[0, 0, 0, 0] = ctx.bad
        return grad, None


def gradients(decoder, loss_of, **settings):
    """The decoder's gradients of reconstruction plus generator term (without one, of reconstruction alone), and what
    the term returned.
    """
    torch.manual_seed(1)
    recon = decoder(torch.randn(2, 4, 6, 6))
    entry, term = recon.detach().requires_grad_(), None
    (at_recon,) = torch.autograd.grad(entry.square().mean() * settings.get("loss_scale", 1.0), entry)
    if loss_of is not None:
        term = adaptive_generator_term(recon, at_recon, loss_of, decoder[-1].weight, strength=0.75, **settings)
        at_recon = at_recon + term.gradient
    return torch.autograd.grad(recon, list(decoder.parameters()), at_recon), term


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_discriminator_gradient_contributes_exactly_nothing(decoder, bad):
    alone, _ = gradients(decoder, None)
    together, term = gradients(decoder, lambda recon: -BadGradient.apply(recon, bad).mean())
    assert term.loss.isfinite() and (term.weight.item(), term.weighted.item()) == (0.0, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_loss_that_is_not_a_number_contributes_nothing_and_is_reported(decoder):
    alone, _ = gradients(decoder, None)
    together, term = gradients(decoder, lambda recon: (recon * float("nan")).mean())
    assert term.loss.isnan() and (term.weight.item(), term.weighted.item()) == (0.0, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_bad_gradient_of_another_rank_closes_this_rank_too(decoder):
    alone, _ = gradients(decoder, None)
    together, _ = gradients(decoder, lambda recon: -recon.mean(), reduce=lambda grads: grads * float("nan"))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_gradient_that_overflows_with_its_weight_is_dropped_whole(decoder):
    """At one position it is large, at the last layer it cancels out, so that the weight is large as well."""
    huge = torch.zeros(2, 3, 6, 6)
    huge[0, :, 2, 2] = 1e37

    def loss_of(recon: torch.Tensor) -> torch.Tensor:
        return (recon * huge).sum() - (recon * huge).sum().detach()

    decoder[0].weight.detach().zero_()
    decoder[0].bias.detach().zero_()  # the last layer sees zeros: its gradients are zero
    alone, _ = gradients(decoder, None)
    with_weight = {"reduce": lambda grads: torch.stack([torch.ones_like(grads[0]), torch.zeros_like(grads[1])])}
    together, term = gradients(decoder, loss_of, **with_weight)
    assert term.weight == 1e4
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_the_gradient_is_that_of_the_weighted_sum(decoder):
    def loss_of(recon: torch.Tensor) -> torch.Tensor:
        return -(recon * recon.detach().cos()).mean()

    ours, term = gradients(decoder, loss_of)
    torch.manual_seed(1)
    recon = decoder(torch.randn(2, 4, 6, 6))
    nll, gen = recon.square().mean(), loss_of(recon)
    expected = adaptive_weight(nll, gen, decoder[-1].weight)
    plain = torch.autograd.grad(nll + 0.75 * (expected * gen), list(decoder.parameters()))
    assert torch.equal(term.weight, expected) and torch.equal(term.loss, gen)
    torch.testing.assert_close(term.weighted, 0.75 * expected * gen.detach(), rtol=1e-6, atol=0)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_only_the_last_layer_is_run_before_the_caller_s_backward(decoder):
    passes = []
    decoder[1].register_full_backward_hook(lambda *_: passes.append(1))
    gradients(decoder, lambda recon: -recon.mean())
    assert passes == [1]


def test_a_loss_scale_cancels_out_of_all_but_the_gradient(decoder):
    def loss_of(recon: torch.Tensor) -> torch.Tensor:
        return -(recon * recon.detach().cos()).mean()

    plain, term = gradients(decoder, loss_of)
    scaled, other = gradients(decoder, loss_of, loss_scale=torch.tensor(2.0**16))
    torch.testing.assert_close((other.loss, other.weight, other.weighted), (term.loss, term.weight, term.weighted))
    torch.testing.assert_close([grad / 2.0**16 for grad in scaled], list(plain), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [2.0**16, torch.tensor(2.0**16)])
def test_under_a_loss_scale_an_overflow_reaches_the_scaler(decoder, scale):
    together, _ = gradients(decoder, lambda recon: -BadGradient.apply(recon, float("inf")).mean(), loss_scale=scale)
    assert not all(grad.isfinite().all() for grad in together)


def test_schedule_published_start_counts_epochs():
    schedule = AdversarialSchedule(GANLossConfig(disc_start=1.5), steps_per_epoch=10)
    assert [schedule.train_discriminator(step) for step in (0, 14, 15)] == [False, False, True]
    assert [schedule.generator_weight(step) for step in (14, 15)] == [0.0, 1.0]


def test_schedule_separate_starts_and_ramp():
    config = GANLossConfig(disc_start=7, disc_start_step=2, gen_start_step=4, gen_ramp_steps=4)
    schedule = AdversarialSchedule(config, steps_per_epoch=10)
    assert [schedule.train_discriminator(step) for step in (1, 2)] == [False, True]
    assert [schedule.generator_weight(step) for step in range(3, 10)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GANLossConfig(disc_start_step=5, gen_start_step=4), "gen_start_step 4.*5"),
        (GANLossConfig(gen_ramp_steps=-1), "negative"),
        (GANLossConfig(disc_start=-1.0), "negative"),
    ],
)
def test_wrong_schedule(config, message):
    with pytest.raises(ValueError, match=message):
        AdversarialSchedule(config, steps_per_epoch=10)
