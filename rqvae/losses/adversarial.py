"""Adversarial losses of stage 1, the adaptive weight between them and reconstruction, and when they apply.

The logits are the patch decisions of `discriminator.PatchDiscriminator`, of any shape. Losses are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rqvae.losses.config import GANLossConfig

ADAPTIVE_WEIGHT_EPS = 1e-4
ADAPTIVE_WEIGHT_MAX = 1e4


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    raise ValueError(f"unknown reduction {reduction!r}, choose one of ['mean', 'sum']")


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor, reduction: str = "mean") -> Tensor:
    """0.5 * (relu(1 - real) + relu(1 + fake)): no gradient from patches that are right by a margin of 1."""
    real = _reduce(F.relu(1.0 - logits_real.float()), reduction)
    fake = _reduce(F.relu(1.0 + logits_fake.float()), reduction)
    return 0.5 * (real + fake)


def vanilla_discriminator_loss(logits_real: Tensor, logits_fake: Tensor, reduction: str = "mean") -> Tensor:
    """0.5 * (softplus(-real) + softplus(fake)): the cross entropy of 'real' against 'generated'."""
    real = _reduce(F.softplus(-logits_real.float()), reduction)
    fake = _reduce(F.softplus(logits_fake.float()), reduction)
    return 0.5 * (real + fake)


def generator_loss(logits_fake: Tensor, reduction: str = "mean") -> Tensor:
    """-fake: raise the discriminator's opinion of the generated images, whichever loss trains the discriminator."""
    return _reduce(-logits_fake.float(), reduction)


def non_saturating_generator_loss(logits_fake: Tensor, reduction: str = "mean") -> Tensor:
    """softplus(-fake): cross entropy of the generated images with the label 'real' (Goodfellow et al. 2014, sec. 3)."""
    return _reduce(F.softplus(-logits_fake.float()), reduction)


DISCRIMINATOR_LOSSES = {"hinge": hinge_discriminator_loss, "vanilla": vanilla_discriminator_loss}
# 'vanilla' is the published name of the plain negative mean.
GENERATOR_LOSSES = {"vanilla": generator_loss, "non_saturating": non_saturating_generator_loss}


def discriminator_loss_by_name(name: str) -> Callable[..., Tensor]:
    """`f(logits_real, logits_fake, reduction='mean')` of the config value `gan.loss.disc_loss`; ValueError else."""
    if name not in DISCRIMINATOR_LOSSES:
        raise ValueError(f"unknown disc_loss {name!r}, choose one of {sorted(DISCRIMINATOR_LOSSES)}")
    return DISCRIMINATOR_LOSSES[name]


def generator_loss_by_name(name: str) -> Callable[..., Tensor]:
    """`f(logits_fake, reduction='mean')` of the config value `gan.loss.gen_loss`; ValueError else."""
    if name not in GENERATOR_LOSSES:
        raise ValueError(f"unknown gen_loss {name!r}, choose one of {sorted(GENERATOR_LOSSES)}")
    return GENERATOR_LOSSES[name]


def adaptive_weight(
    nll_loss: Tensor,
    gen_loss: Tensor,
    last_layer: Tensor,
    reduce: Callable[[Tensor], Tensor | None] | None = None,
    loss_scale: Tensor | float = 1.0,
) -> Tensor:
    """Weight that gives the generator term the gradient size of the reconstruction term at the decoder's last layer.

    |d nll / d last| / (|d gen / d last| + 1e-4), clamped to [0, 1e4] (Esser et al. 2021, Eq. 7). A gradient that is not
    finite gives weight 0. The graphs of both losses are kept, and each is run backward once: a training step that needs
    their gradients anyway takes `adaptive_generator_term`, which spares it that.

    Args:
        nll_loss: scalar reconstruction + perceptual loss, without the commitment term.
        gen_loss: scalar generator loss, not weighted.
        last_layer: the decoder's last weight.
        reduce: averages a tensor over the ranks (in place, or returning the result); it is called once, with both
            gradients stacked, so that several ranks compute the weight of one process on the joint batch.
        loss_scale: factor put on both losses before, and taken off both gradients after, the backward pass; under fp16
            pass the gradient scaler's scale, or small gradients are flushed to zero on their way.

    Returns: a float32 scalar without gradient.
    """
    nll_grad = torch.autograd.grad(nll_loss.float() * loss_scale, last_layer, retain_graph=True)[0]
    gen_grad = torch.autograd.grad(gen_loss.float() * loss_scale, last_layer, retain_graph=True)[0]
    return _weight_of_gradients(nll_grad, gen_grad, reduce, loss_scale)


def _weight_of_gradients(
    nll_grad: Tensor,
    gen_grad: Tensor,
    reduce: Callable[[Tensor], Tensor | None] | None,
    loss_scale: Tensor | float,
) -> Tensor:
    grads = torch.stack([nll_grad.detach().float(), gen_grad.detach().float()]) / loss_scale
    if reduce is not None:
        reduced = reduce(grads)
        grads = grads if reduced is None else reduced
    nll_norm, gen_norm = torch.linalg.vector_norm(grads.flatten(1), dim=1)
    weight = (nll_norm / (gen_norm + ADAPTIVE_WEIGHT_EPS)).clamp(0.0, ADAPTIVE_WEIGHT_MAX)
    finite = torch.isfinite(nll_norm) & torch.isfinite(gen_norm)
    return torch.where(finite, weight, torch.zeros_like(weight))


class GeneratorTerm(NamedTuple):
    """What `adaptive_generator_term` gives; nothing of it has a graph.

    loss: the generator loss as it came out, finite or not. weight: the adaptive weight. weighted: their product with
    the strength, exactly 0 where the weight is 0. gradient: that of `weighted` at the reconstructions, times the loss
    scale.
    """

    loss: Tensor
    weight: Tensor
    weighted: Tensor
    gradient: Tensor


def adaptive_generator_term(
    recon: Tensor,
    nll_gradient: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    last_layer: Tensor,
    *,
    strength: float = 1.0,
    reduce: Callable[[Tensor], Tensor | None] | None = None,
    loss_scale: Tensor | float = 1.0,
) -> GeneratorTerm:
    """The adaptively weighted generator loss and its gradient, with one pass through the discriminator each way.

    The weight compares gradients at the last layer, which follow from those at the reconstructions by one product with
    the last layer alone: no other part of the graph of `recon` is run, so it may be compiled. The caller ends the step
    with `recon.backward(nll_gradient + term.gradient)`.

    A gradient that is not finite never reaches the autoencoder: it is dropped as a whole when any of it is not finite,
    and the autoencoder's gradients are then exactly those without this term. Under a loss scale other than 1 nothing is
    dropped: by an overflow the gradient scaler learns that its scale is too large, and it leaves out the whole step.

    Args:
        recon: the reconstructions, with their graph, of which only the last layer is run backward and all is kept.
        nll_gradient: gradient of the reconstruction + perceptual loss, times `loss_scale`, at `recon`.
        loss_of: `recon -> scalar generator loss`, not weighted: discriminator (its parameters frozen) and loss. It is
            called once, with the values of `recon`.
        strength: factor beside the adaptive weight.
        last_layer, reduce, loss_scale: see `adaptive_weight`.
    """
    entry = recon.detach().requires_grad_()
    loss = loss_of(entry)
    (gradient,) = torch.autograd.grad(loss.float() * loss_scale, entry)
    at_last = [
        torch.autograd.grad(recon, last_layer, at_recon, retain_graph=True)[0] for at_recon in (nll_gradient, gradient)
    ]
    weight = _weight_of_gradients(at_last[0], at_last[1], reduce, loss_scale)
    loss, factor = loss.detach(), strength * weight
    weighted = torch.where(weight > 0, factor * loss, torch.zeros_like(loss))
    gradient = factor * gradient
    if not isinstance(loss_scale, Tensor) and loss_scale == 1.0:
        gradient = torch.where(torch.isfinite(gradient).all(), gradient, torch.zeros_like(gradient))
    return GeneratorTerm(loss, weight, weighted, gradient)


class AdversarialSchedule:
    """When the discriminator learns and how strongly the generator feels it, as pure functions of the optimizer step.

    A discriminator that has just been initialised knows nothing; a later `gen_start_step` lets it learn first, and
    `gen_ramp_steps` then brings it in gradually.

    Args:
        config: the `gan.loss` section. `disc_start` counts epochs (published); a `disc_start_step` replaces it.
        steps_per_epoch: optimizer steps of one epoch.

    Raises ValueError for negative steps, and for a generator that would follow an untrained discriminator.
    """

    def __init__(self, config: GANLossConfig, steps_per_epoch: float = 1):
        in_steps = config.disc_start_step
        self.disc_start = round(config.disc_start * steps_per_epoch) if in_steps is None else in_steps
        self.gen_start = self.disc_start if config.gen_start_step is None else config.gen_start_step
        self.gen_ramp_steps = config.gen_ramp_steps
        if min(self.disc_start, self.gen_start, self.gen_ramp_steps) < 0:
            raise ValueError(
                f"gan.loss counts no negative steps: discriminator from {self.disc_start}, generator from "
                f"{self.gen_start}, gen_ramp_steps {self.gen_ramp_steps}"
            )
        if self.gen_start < self.disc_start:
            raise ValueError(
                f"gan.loss.gen_start_step {self.gen_start} lies before the discriminator's first step "
                f"{self.disc_start}: the generator would follow an untrained discriminator"
            )

    def train_discriminator(self, step: int) -> bool:
        """Whether optimizer step `step` (from 0) also trains the discriminator."""
        return step >= self.disc_start

    def generator_weight(self, step: int) -> float:
        """Factor in [0, 1] on the generator term at step `step`, beside `disc_weight` and the adaptive weight."""
        if step < self.gen_start:
            return 0.0
        if self.gen_ramp_steps == 0:
            return 1.0
        return min(1.0, (step - self.gen_start + 1) / self.gen_ramp_steps)
