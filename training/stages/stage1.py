"""What one optimizer step of stage 1 is: autoencoder step, discriminator step, codebook update, EMA.

Legend: B batch, C channels, H W image or code grid, D code depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

import torch
from torch import Tensor, nn

from data import DatasetConfig, ImageDataset
from rqstack.archive import read_archive
from rqstack.quantizers.usage import CodeUsage
from rqstack.snapshots import snapshot_tensors
from rqvae import RQVAE, load_rqvae
from rqvae.config import ArchConfig
from rqvae.losses.adversarial import AdversarialSchedule
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.losses.image_terms import build_image_terms
from rqvae.losses.reconstruction import reconstruction_loss
from rqvae.model import count_parameters
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import Precision
from sampling.picture_grids import COARSE_TO_FINE, SINGLE_DEPTHS, coarse_to_fine, single_depths
from scoring.scoring_data import ScoringData, reconstructed
from training.experiment import BatchPlan, ExperimentConfig
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import check_parallel, no_sync, wrap
from training.optimization.update import accumulate, build_update
from training.stage import Batch, OnSkip, Part, SnapshotWeights, Stateful, tell_nobody
from training.stages.adversary import Adversary, GANSection
from training.stages.data_checks import check_channels, check_images, check_resolution
from training.stages.start_weights import load_into
from training.stages.validation import usage_metrics, validate_stage1

Module = TypeVar("Module", bound=nn.Module)
NOT_SHARDED = "stage 1 is small, and its adaptive weight needs the whole last layer outside of the backward pass"


@dataclass
class Stage1Config:
    """A stage-1 YAML file: the published sections, typed.

    Attributes:
        dataset: which images, at which size, from where.
        arch: the RQ-VAE.
        optimizer: of the autoencoder.
        experiment: how long, how large and how often.
        gan: discriminator and perceptual loss. null: the reconstruction loss alone.
        seed: of initial weights, order and noise.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: ArchConfig = field(default_factory=ArchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    gan: Optional[GANSection] = None
    seed: int = 0

    def completed(self) -> Stage1Config:
        """Itself: it names no checkpoint."""
        return self

    def fitted_to(self, dataset: ImageDataset) -> Stage1Config:
        """Itself: images have no say in the size of an RQ-VAE."""
        return self


class Stage1:
    """The RQ-VAE with everything that trains it; a `training.stage.Stage`.

    Args:
        config: the typed experiment.
        plan: batch and step counts (`training.experiment.plan_batches`).
        env: rank, world size and device.
    """

    name = "stage1"
    score_kind, score_split = "rfid", "val"

    def __init__(self, config: Stage1Config, plan: BatchPlan, env: DistEnv) -> None:
        self.config, self.plan, self.env = config, plan, env
        experiment = config.experiment
        self.precision = Precision(experiment.precision, env.device, experiment.amp)
        check_parallel(experiment.parallel, env, ("ddp", "none"), NOT_SHARDED)
        if experiment.score.classes != "seen":
            raise ValueError("experiment.score.classes is for samples of stage 2; stage 1 scores reconstructions")
        if experiment.gradient_checkpointing == "selective":
            raise ValueError("experiment.gradient_checkpointing='selective' is for stage 2: choose false or true")
        model_config = config.arch.model_config()
        model_config.checkpointing |= experiment.gradient_checkpointing
        self.model = self._place(RQVAE(model_config))
        quantizer = self.model.quantizer
        self.parallel = wrap(self.model, env, find_unused_parameters=not quantizer.uses_all_parameters)
        self.ema = EMA(self.model, config.arch.ema) if config.arch.ema is not None else None
        self.update = build_update(self.model, config.optimizer, experiment, plan, env, self.precision)
        self.adversary = self._build_adversary(config.gan) if config.gan is not None else None
        self.image_terms = build_image_terms(config.gan.loss if config.gan is not None else None, self._place)
        sizes = quantizer.num_codes
        self.usage = CodeUsage(len(sizes), sizes, env.device) if sizes else None

    def _place(self, module: Module) -> Module:
        module = module.to(self.env.device)
        if self.config.experiment.channels_last:
            module = module.to(memory_format=torch.channels_last)
        if self.config.experiment.compile:
            module.compile()
        return module

    def _build_adversary(self, gan: GANSection) -> Adversary:
        config, plan = self.config, self.plan
        channels = self.model.config.ddconfig.out_ch
        if gan.disc.arch.in_channels not in (None, channels):
            raise ValueError(
                f"gan.disc.arch.in_channels={gan.disc.arch.in_channels} must be arch.ddconfig.out_ch={channels}"
            )
        discriminator = self._place(PatchDiscriminator.from_config(gan.disc.arch, channels))
        schedule = AdversarialSchedule(gan.loss, plan.steps_per_epoch)
        update = build_update(
            discriminator,
            gan.disc.optimizer or config.optimizer,
            config.experiment,
            plan,
            self.env,
            self.precision,
            first_step=schedule.disc_start,
        )
        return Adversary(
            gan.loss,
            schedule,
            discriminator,
            update,
            env=self.env,
            precision=self.precision,
            last_layer=self.model.decoder_last_layer,
            loss_scale=self.update.loss_scale,
        )

    def check_data(self, dataset: ImageDataset) -> None:
        """ValueError when the model cannot be trained on these images."""
        check_images(dataset)
        check_resolution(dataset, self.model.config.ddconfig.image_size, "arch.ddconfig.resolution")
        check_channels(dataset, self.model.config.ddconfig.in_channels, "arch.ddconfig.in_channels")

    def train_step(self, micro_batches: Iterable[Batch], step: int, on_skip: OnSkip = tell_nobody) -> dict[str, Tensor]:
        """One step on the global batch; see `training.stage.Stage`."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        adversary = self.adversary
        if adversary is not None and not adversary.schedule.train_discriminator(step):
            adversary = None
        count = self.plan.accumulation
        for index, batch in enumerate(micro_batches):
            image_BCHW = self._image(batch)
            with no_sync(self.parallel, enabled=index + 1 < count):
                recon_BCHW, terms = self._autoencoder_pass(image_BCHW, step, count)
            if adversary is not None:
                pairs.append((image_BCHW, recon_BCHW))
            accumulate(sums, terms, count)
        if not self.update.step(step, sums, on_skip):
            self.model.discard_codebook_update()
            return sums  # the reconstructions of a skipped step are not to be trusted either
        self.model.update_codebook()
        if adversary is not None:
            adversary.train_step(pairs, step, sums, on_skip)
        if self.ema is not None:
            self.ema.update(self.model, step)
        return sums

    def _image(self, batch: Batch) -> Tensor:
        image_BCHW = batch["image"]
        if self.config.experiment.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        return image_BCHW

    def _autoencoder_pass(self, image_BCHW: Tensor, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of one of `count` micro-batches: its reconstructions and the values of its losses.

        The total is the paper's Eq. 8 (reconstruction, commitment) with LPIPS and GAN. What looks at images is run
        backward first, down to the reconstructions; then their joint gradient goes through the autoencoder, once. So
        no graph is run twice, and the activations of LPIPS and of the discriminator are gone before the autoencoder's
        backward pass.
        """
        with self.precision.autocast():
            recon_BCHW, quantized = self.parallel(image_BCHW)
        if self.usage is not None:
            self.usage.update(quantized.codes)
        recon_BCHW = recon_BCHW.float()
        entry_BCHW = recon_BCHW.detach().requires_grad_()
        nll, terms = self._image_losses(entry_BCHW, image_BCHW)
        (gradient_BCHW,) = torch.autograd.grad(nll * self.update.loss_scale(), entry_BCHW)
        loss_latent = self.model.config.latent_loss_weight * quantized.loss
        total = nll.detach() + loss_latent.detach()
        if self.adversary is not None:
            term = self.adversary.generator_term(recon_BCHW, gradient_BCHW, step)
            zero = torch.zeros_like(total)
            terms.update(loss_gen=term.loss if term else zero, g_weight=term.weight if term else zero)
            if term is not None:
                total, gradient_BCHW = total + term.weighted, gradient_BCHW + term.gradient
        self.update.backward_from(recon_BCHW, gradient_BCHW / count, loss_latent / count)
        return entry_BCHW.detach(), {**terms, "loss_latent": quantized.loss, "loss_total": total}

    def _image_losses(self, recon_BCHW: Tensor, image_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses that compare reconstructions with their images, and each of them."""
        nll = loss_recon = reconstruction_loss(recon_BCHW, image_BCHW, self.model.config.loss_type)
        terms = {"loss_recon": loss_recon}
        for term in self.image_terms:
            with self.precision.autocast():
                loss = terms[f"loss_{term.name}"] = term.distance(recon_BCHW, image_BCHW).float().mean()
            nll = nll + term.weight * loss
        return nll, terms

    def window_metrics(self) -> dict[str, Any]:
        """Code usage and restarts per depth over the window, and the learning rate."""
        metrics: dict[str, Any] = {"lr": self.update.learning_rate}
        if self.usage is not None:
            self.usage.note_restarts(self.model.quantizer.restart_counts())
            metrics.update(usage_metrics(self.usage))
            self.usage.reset()
        return metrics

    @property
    def keeps_average(self) -> bool:
        """Whether `arch.ema` asks for averaged weights."""
        return self.ema is not None

    def averaged(self) -> AbstractContextManager[None]:
        """Context with the averaged weights in place; does nothing without."""
        return nullcontext() if self.ema is None else self.ema.swap(self.model)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """`validate_stage1` of any batches with the current weights."""
        return validate_stage1(self.model, batches, self.env.device, self.precision, self.image_terms)

    def images_to_score(self, data: ScoringData, num_images: int) -> Iterator[Batch]:
        """Reconstructions, in full precision, of images spread evenly over the validation split."""
        self.model.eval()
        originals = data.spread_float_batches(self.score_split, num_images)
        return reconstructed(originals, lambda image_BCHW: self.model.decode_code(self.model.get_codes(image_BCHW)))

    def pictures(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Images, coarse to fine and depth by depth, made on the main process."""
        if not distributed.is_main() or self.usage is None:
            return {}
        batch = next(iter(batches))
        image_BCHW = batch["image"][: self.config.experiment.grid_images].to(self.env.device)
        return {
            COARSE_TO_FINE: coarse_to_fine(self.model, image_BCHW),
            SINGLE_DEPTHS: single_depths(self.model, image_BCHW),
        }

    def objects(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs; schedules and random states are derived, not stored."""
        objects: dict[str, Stateful] = {"model": self.model, "update": self.update}
        if self.ema is not None:
            objects["ema"] = self.ema
        if self.adversary is not None:
            objects["discriminator"] = self.adversary.discriminator
            objects["discriminator_update"] = self.adversary.update
        return objects

    def load_weights(self, path: Path) -> None:
        """Starts from trained weights (and, where the file has one, their discriminator): finetuning, evaluation."""
        load_into(self.model, load_rqvae(path).state_dict(), path)
        parts = read_archive(path).parts
        if self.ema is not None:
            averaged = load_rqvae(path, ema=True) if "state_dict_ema" in parts else self.model
            self.ema.load_state_dict(averaged.to(self.env.device).state_dict())
        if self.adversary is not None and "discriminator" in parts:
            load_into(self.adversary.discriminator, parts["discriminator"], f"{path} (discriminator)")

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

    def parts(self) -> dict[str, Part]:
        """Autoencoder, discriminator, and what compares images."""
        parts = {"autoencoder": Part(self.model, self.config.optimizer)}
        if self.adversary is not None and self.config.gan is not None:
            optimizer = self.config.gan.disc.optimizer or self.config.optimizer
            parts["discriminator"] = Part(self.adversary.discriminator, optimizer)
        return parts | {term.name: Part(term.distance, None) for term in self.image_terms}

    @torch.no_grad()
    def codes(self, batch: Batch) -> Tensor | None:
        """The nearest codes of a batch of images."""
        return None if self.usage is None else self.model.eval().get_codes(self._image(batch))

    def trial_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Without the adversarial term: of a step's passes the one that keeps most."""
        self.model.train()
        image_BCHW = self._image(batch)
        with self.precision.autocast():
            recon_BCHW, quantized = self.parallel(image_BCHW)
        nll, terms = self._image_losses(recon_BCHW.float(), image_BCHW)
        return nll + self.model.config.latent_loss_weight * quantized.loss, terms

    def provenance(self) -> dict[str, Any]:
        """What a snapshot's metadata says beyond the progress."""
        return {"dataset": self.config.dataset.name}

    def snapshot(self) -> SnapshotWeights:
        """Raw and (where kept) EMA weights in the form that `rqvae.load_rqvae` reads; empty but on the main process."""
        if not self.env.is_main:
            return {}, None
        raw = snapshot_tensors(self.model)
        if self.ema is None:
            return raw, None
        with self.ema.swap(self.model):
            return raw, snapshot_tensors(self.model)

    def snapshot_facts(self, dataset: ImageDataset) -> dict[str, Any]:
        """None: an RQ-VAE does not know classes."""
        return {}

    def snapshot_files(self, dataset: ImageDataset) -> dict[str, str]:
        """None: all of an RQ-VAE is in its weights and its config."""
        return {}
