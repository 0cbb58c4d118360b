"""The discriminator of stage 1: its optimizer step, and the generator's adversarial term.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Optional

from torch import Tensor

from rqvae.losses.adversarial import (
    AdversarialSchedule,
    GeneratorTerm,
    adaptive_generator_term,
    discriminator_loss_by_name,
    generator_loss_by_name,
)
from rqvae.losses.config import DiscConfig, GANConfig, GANLossConfig
from rqvae.losses.discriminator import PatchDiscriminator
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import Precision
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import no_sync, wrap
from training.optimization.update import ScaledUpdate, accumulate
from training.stage import OnSkip, tell_nobody


@dataclass
class DiscriminatorSection(DiscConfig):
    """`gan.disc` with its optimizer typed; without one the discriminator is trained like the autoencoder."""

    optimizer: Optional[OptimizerConfig] = None


@dataclass
class GANSection(GANConfig):
    """The `gan` section."""

    disc: DiscriminatorSection = field(default_factory=DiscriminatorSection)


class Adversary:
    """The patch discriminator with its update, and the generator's adversarial term.

    Args:
        config: the `gan.loss` section.
        schedule: when the discriminator and the term take part.
        discriminator: on its device.
        update: trains the discriminator.
        env: the processes that share the batch.
        precision: what the discriminator's passes run in.
        last_layer: the weight of the autoencoder at which the gradients of its losses are compared.
        loss_scale: the factor by which the autoencoder's losses are scaled at the moment.
    """

    def __init__(
        self,
        config: GANLossConfig,
        schedule: AdversarialSchedule,
        discriminator: PatchDiscriminator,
        update: ScaledUpdate,
        *,
        env: DistEnv,
        precision: Precision,
        last_layer: Tensor,
        loss_scale: Callable[[], Tensor | float],
    ) -> None:
        self.disc_weight, self.schedule = config.disc_weight, schedule
        self.discriminator, self.parallel = discriminator, wrap(discriminator, env)
        self.update, self.precision = update, precision
        self.last_layer, self.loss_scale = last_layer, loss_scale
        self.discriminator_loss = discriminator_loss_by_name(config.disc_loss)
        self.generator_loss = generator_loss_by_name(config.gen_loss)

    def generator_term(self, recon_BCHW: Tensor, nll_gradient_BCHW: Tensor, step: int) -> GeneratorTerm | None:
        """The adaptively weighted generator loss; None, without a discriminator pass, before its start.

        Args:
            recon_BCHW: the reconstructions, with their graph.
            nll_gradient_BCHW: gradient at them of the other image losses, times the loss scale.
        """
        ramp = self.schedule.generator_weight(step)
        if ramp == 0.0:
            return None
        self.discriminator.train().requires_grad_(False)
        term = adaptive_generator_term(
            recon_BCHW,
            nll_gradient_BCHW,
            self._generator_loss_of,
            self.last_layer,
            strength=ramp * self.disc_weight,
            reduce=distributed.all_reduce_mean_,
            loss_scale=self.loss_scale(),
        )
        self.discriminator.requires_grad_(True)
        return term

    def _generator_loss_of(self, recon_BCHW: Tensor) -> Tensor:
        with self.precision.autocast():
            logits_fake = self.discriminator(recon_BCHW)
        return self.generator_loss(logits_fake.float())

    def train_step(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        step: int,
        sums: dict[str, Tensor],
        on_skip: OnSkip = tell_nobody,
    ) -> None:
        """One discriminator step on the step's (image, older reconstruction) pairs; adds its terms to `sums`."""
        self.discriminator.train()
        disc_sums: dict[str, Tensor] = {}
        for index, (image_BCHW, recon_BCHW) in enumerate(pairs):
            with no_sync(self.parallel, enabled=index + 1 < len(pairs)):
                terms = self._terms(image_BCHW, recon_BCHW)
                self.update.backward(terms["loss_disc"] / len(pairs))
            accumulate(disc_sums, terms, len(pairs))
        self.update.step(step, disc_sums, on_skip, prefix="disc_")
        sums.update(disc_sums)

    def _terms(self, image_BCHW: Tensor, recon_BCHW: Tensor) -> dict[str, Tensor]:
        with self.precision.autocast():
            # two calls, fake first: BatchNorm statistics are those of each call, as published
            logits_fake = self.parallel(recon_BCHW)
            logits_real = self.parallel(image_BCHW)
        logits_fake, logits_real = logits_fake.float(), logits_real.float()
        loss_disc = self.disc_weight * self.discriminator_loss(logits_real, logits_fake)
        real, fake = logits_real.mean(), logits_fake.mean()
        return {"loss_disc": loss_disc, "logits_real": real, "logits_fake": fake, "disc_gap": real - fake}
