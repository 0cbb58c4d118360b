"""What one optimizer step of stage 1 is: autoencoder step, discriminator step, codebook update, EMA.

Legend: B batch, C channels, H W image or code grid, D code depth.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from data import DatasetConfig, ImageDataset
from rqstack.quantizers.usage import CodeUsage
from rqstack.snapshots import snapshot_tensors
from rqvae import RQVAE
from rqvae.config import ArchConfig
from rqvae.losses.adversarial import (
    AdversarialSchedule,
    adaptive_generator_term,
    discriminator_loss_by_name,
    generator_loss_by_name,
)
from rqvae.losses.config import DiscConfig, GANConfig
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.losses.perceptual import PerceptualLoss
from rqvae.losses.reconstruction import reconstruction_loss
from rqvae.model import count_parameters
from rqvae.pretrained import load_rqvae, read_checkpoint
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import Precision
from sampling.picture_grids import coarse_to_fine, single_depths
from scoring.scoring_data import Batches, ScoringData, reconstructed
from training.experiment import BatchPlan, ExperimentConfig
from training.launch.data_checks import check_images, check_resolution
from training.launch.start_weights import load_into
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import check_parallel, no_sync, wrap
from training.optimization.update import accumulate, build_update
from training.stages.validation import usage_metrics, validate_stage1

NOT_SHARDED = "stage 1 is small, and its adaptive weight needs the whole last layer outside of the backward pass"


@dataclass
class DiscriminatorSection(DiscConfig):
    """`gan.disc` with its optimizer typed; without one the discriminator is trained like the autoencoder."""

    optimizer: Optional[OptimizerConfig] = None


@dataclass
class GANSection(GANConfig):
    """The `gan` section."""

    disc: DiscriminatorSection = field(default_factory=DiscriminatorSection)


@dataclass
class Stage1Config:
    """A stage-1 YAML file: the published sections, typed."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: ArchConfig = field(default_factory=ArchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    gan: Optional[GANSection] = None
    seed: int = 0


class Stage1:
    """The RQ-VAE with everything that trains it.

    Args:
        config: the typed experiment.
        plan: batch and step counts (`training.experiment.plan_batches`).
        env: rank, world size and device.
        validation_batches: callable giving this rank's share of the validation split, each image once.
    """

    name = "stage1"
    score_kind, score_split = "rfid", "val"

    def __init__(
        self,
        config: Stage1Config,
        plan: BatchPlan,
        env: DistEnv,
        validation_batches: Callable[[], Iterable[dict[str, Tensor]]],
    ):
        self.config, self.plan, self.env = config, plan, env
        self.validation_batches = validation_batches
        experiment = config.experiment
        self.precision = Precision(experiment.precision, env.device, experiment.amp)
        check_parallel(experiment.parallel, env, ("ddp", "none"), NOT_SHARDED)
        model_config = config.arch.model_config()
        model_config.checkpointing |= experiment.gradient_checkpointing
        self.model = self._place(RQVAE(model_config))
        quantizer = self.model.quantizer
        self.parallel = wrap(self.model, env, find_unused_parameters=not quantizer.uses_all_parameters)
        self.ema = EMA(self.model, config.arch.ema) if config.arch.ema is not None else None
        self.update = build_update(self.model, config.optimizer, experiment, plan, env, self.precision)
        self.adversary = Adversary(self, config.gan) if config.gan is not None else None
        self.perceptual_weight = config.gan.loss.perceptual_weight if config.gan is not None else 0.0
        self.perceptual = None
        if self.perceptual_weight > 0:
            self.perceptual = self._place(PerceptualLoss(config.gan.loss.perceptual_backbone))
        sizes = quantizer.num_codes
        self.usage = CodeUsage(len(sizes), sizes, env.device) if sizes else None

    def _place(self, module: nn.Module) -> nn.Module:
        module = module.to(self.env.device)
        if self.config.experiment.channels_last:
            module = module.to(memory_format=torch.channels_last)
        if self.config.experiment.compile:
            module.compile()
        return module

    def check_data(self, dataset: ImageDataset) -> None:
        """ValueError when the model cannot be trained on these images."""
        check_images(dataset)
        check_resolution(dataset, self.model.config.ddconfig.resolution, "arch.ddconfig.resolution")

    def train_step(self, micro_batches: Iterable[dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        """One step on the global batch; see `training.loop.loop.Stage`."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        train_discriminator = self.adversary is not None and self.adversary.schedule.train_discriminator(step)
        count = self.plan.accumulation
        for index, batch in enumerate(micro_batches):
            image_BCHW = self._image(batch)
            with no_sync(self.parallel, enabled=index + 1 < count):
                recon_BCHW, terms = self._autoencoder_terms(image_BCHW, step)
                self.update.backward(terms["loss_total"] / count)
            if train_discriminator:
                pairs.append((image_BCHW, recon_BCHW.detach()))
            accumulate(sums, terms, count)
        applied = self.update.step(step, sums)
        if applied:
            self.model.update_codebook()
        else:
            self.model.discard_codebook_update()
        # after a skipped step the reconstructions are not to be trusted
        if applied and train_discriminator:
            self.adversary.train_step(pairs, step, sums)
        if self.ema is not None and applied:
            self.ema.update(self.model, step)
        return sums

    def _image(self, batch: dict[str, Tensor]) -> Tensor:
        image_BCHW = batch["image"]
        if self.config.experiment.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        return image_BCHW

    def _autoencoder_terms(self, image_BCHW: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and the weighted sum of the paper's Eq. 8 (reconstruction, commitment) with LPIPS and GAN."""
        hparams = self.model.config
        with self.precision.autocast():
            recon_BCHW, quantized = self.parallel(image_BCHW)
        if self.usage is not None:
            self.usage.update(quantized.codes)
        recon_BCHW = recon_BCHW.float()
        loss_recon = reconstruction_loss(recon_BCHW, image_BCHW, hparams.loss_type)
        terms = {"loss_recon": loss_recon, "loss_latent": quantized.loss}
        nll = loss_recon
        if self.perceptual is not None:
            with self.precision.autocast():
                terms["loss_perceptual"] = self.perceptual(recon_BCHW, image_BCHW).float().mean()
            nll = nll + self.perceptual_weight * terms["loss_perceptual"]
        total = nll + hparams.latent_loss_weight * quantized.loss
        if self.adversary is not None:
            total = total + self.adversary.generator_term(recon_BCHW, nll, step, terms)
        terms["loss_total"] = total
        return recon_BCHW, terms

    def window_metrics(self) -> dict[str, Any]:
        """Code usage and restarts per depth over the window, and the learning rate."""
        metrics: dict[str, Any] = {"lr": self.update.learning_rate}
        if self.usage is not None:
            self.usage.note_restarts(self.model.quantizer.restart_counts())
            metrics.update(usage_metrics(self.usage))
            self.usage.reset()
        return metrics

    def averaged(self) -> contextlib.AbstractContextManager:
        """Context with the EMA weights in place; does nothing without EMA."""
        return self.ema.swap(self.model) if self.ema is not None else contextlib.nullcontext()

    def validate(self) -> dict[str, Any]:
        """Reconstruction and usage of the validation split, with EMA weights where the run keeps them."""
        with self.averaged():
            return self.evaluate(self.validation_batches())

    def evaluate(self, batches: Iterable[dict[str, Tensor]]) -> dict[str, Any]:
        """`validate_stage1` of any batches with the current weights."""
        return validate_stage1(self.model, batches, self.env.device, self.precision, self.perceptual)

    def images_to_score(self, data: ScoringData, num_images: int) -> Batches:
        """Reconstructions, in full precision, of images spread evenly over the validation split."""
        self.model.eval()
        originals = data.spread_float_batches(self.score_split, num_images)
        return reconstructed(originals, lambda image_BCHW: self.model.decode_code(self.model.get_codes(image_BCHW)))

    def pictures(self) -> dict[str, Tensor]:
        """Validation images, coarse to fine and depth by depth, made on the main process."""
        if not distributed.is_main() or self.usage is None:
            return {}
        batch = next(iter(self.validation_batches()))
        image_BCHW = batch["image"][: self.config.experiment.grid_images].to(self.env.device)
        with self.averaged():
            return {
                "reconstruction_coarse_to_fine": coarse_to_fine(self.model, image_BCHW),
                "reconstruction_single_depths": single_depths(self.model, image_BCHW),
            }

    def objects(self) -> dict[str, Any]:
        """Everything that a resumed run needs; schedules and random states are derived, not stored."""
        objects = {"model": self.model, "update": self.update}
        if self.ema is not None:
            objects["ema"] = self.ema
        if self.adversary is not None:
            objects["discriminator"] = self.adversary.discriminator
            objects["discriminator_update"] = self.adversary.update
        return objects

    def load_weights(self, path: Path) -> None:
        """Starts from trained weights (and, where the file has one, their discriminator): finetuning, evaluation."""
        load_into(self.model, load_rqvae(path).state_dict(), path)
        checkpoint = read_checkpoint(path)
        if self.ema is not None:
            averaged = load_rqvae(path, ema=True) if "state_dict_ema" in checkpoint else self.model
            self.ema.load_state_dict(averaged.to(self.env.device).state_dict())
        if self.adversary is not None and "discriminator" in checkpoint:
            load_into(self.adversary.discriminator, checkpoint["discriminator"], f"{path} (discriminator)")

    def describe(self) -> str:
        """One line on the size of the networks."""
        hparams = self.model.config
        update = f"codebook update {hparams.codebook_update}"
        quantizer = update if hparams.bottleneck_type == "rq" else f"bottleneck {hparams.bottleneck_type}"
        line = f"RQ-VAE with {count_parameters(self.model):,} parameters, {quantizer}"
        if self.adversary is not None:
            size = sum(parameter.numel() for parameter in self.adversary.discriminator.parameters())
            line += f"; discriminator with {size:,}"
        return line

    def provenance(self) -> dict[str, Any]:
        """What a snapshot's metadata says beyond the progress."""
        return {"dataset": self.config.dataset.name}

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Raw and (where kept) EMA weights in the form that `rqvae.load_rqvae` reads; empty but on the main process."""
        if not self.env.is_main:
            return {}, None
        raw = snapshot_tensors(self.model)
        if self.ema is None:
            return raw, None
        with self.ema.swap(self.model):
            return raw, snapshot_tensors(self.model)


class Adversary:
    """The patch discriminator, its optimizer and the generator's adversarial term."""

    def __init__(self, stage: Stage1, config: GANSection):
        self.config = config.loss
        self.precision = stage.precision
        self.last_layer = stage.model.decoder_last_layer
        self.loss_scale = stage.update.scaler.get_scale
        self.discriminator = stage._place(PatchDiscriminator.from_config(config.disc.arch))
        self.parallel = wrap(self.discriminator, stage.env)
        self.schedule = AdversarialSchedule(config.loss, stage.plan.steps_per_epoch)
        self.update = build_update(
            self.discriminator,
            config.disc.optimizer or stage.config.optimizer,
            stage.config.experiment,
            stage.plan,
            stage.env,
            stage.precision,
            first_step=self.schedule.disc_start,
        )
        self.discriminator_loss = discriminator_loss_by_name(config.loss.disc_loss)
        self.generator_loss = generator_loss_by_name(config.loss.gen_loss)

    def generator_term(self, recon_BCHW: Tensor, nll: Tensor, step: int, terms: dict[str, Tensor]) -> Tensor:
        """The adaptively weighted generator loss; zero, without a discriminator pass, before its start."""
        ramp = self.schedule.generator_weight(step)
        if ramp == 0.0:
            zero = nll.new_zeros(())
            terms.update(loss_gen=zero, g_weight=zero)
            return zero
        self.discriminator.train().requires_grad_(False)
        loss_gen, g_weight, weighted = adaptive_generator_term(
            nll,
            recon_BCHW,
            self._generator_loss_of,
            self.last_layer,
            reduce=distributed.all_reduce_mean_,
            loss_scale=self.loss_scale(),
        )
        self.discriminator.requires_grad_(True)
        terms.update(loss_gen=loss_gen, g_weight=g_weight)
        return ramp * self.config.disc_weight * weighted

    def _generator_loss_of(self, recon_BCHW: Tensor) -> Tensor:
        with self.precision.autocast():
            logits_fake = self.discriminator(recon_BCHW)
        return self.generator_loss(logits_fake.float())

    def train_step(self, pairs: list[tuple[Tensor, Tensor]], step: int, sums: dict[str, Tensor]) -> None:
        """One discriminator step on the step's (image, older reconstruction) pairs; adds its terms to `sums`."""
        self.discriminator.train()
        disc_sums: dict[str, Tensor] = {}
        for index, (image_BCHW, recon_BCHW) in enumerate(pairs):
            with no_sync(self.parallel, enabled=index + 1 < len(pairs)):
                with self.precision.autocast():
                    # two calls, fake first: BatchNorm statistics are those of each call, as published
                    logits_fake = self.parallel(recon_BCHW)
                    logits_real = self.parallel(image_BCHW)
                logits_fake, logits_real = logits_fake.float(), logits_real.float()
                loss_disc = self.config.disc_weight * self.discriminator_loss(logits_real, logits_fake)
                self.update.backward(loss_disc / len(pairs))
            real, fake = logits_real.mean(), logits_fake.mean()
            terms = {"loss_disc": loss_disc, "logits_real": real, "logits_fake": fake, "disc_gap": real - fake}
            accumulate(disc_sums, terms, len(pairs))
        self.update.step(step, disc_sums, prefix="disc_")
        sums.update(disc_sums)
