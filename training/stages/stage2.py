"""What one optimizer step of stage 2 is: frozen tokenizer -> codes and targets -> body and head -> loss -> step.

Legend: B batch, C channels, H W image or code grid, D code depth, K codebook size, V vocabulary, E code-vector size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from data import DatasetConfig, ImageDataset
from data.tokenizers.caption_tokenizer import CaptionTokenizer
from rqstack.snapshots import weights_digest
from rqtransformer import RQTransformer, RQTransformerConfig, load_rqtransformer
from rqtransformer.decoding.sampling_request import settings_per_depth
from rqtransformer.model import count_parameters
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss
from rqvae import RQVAE
from runtime.distributed import DistEnv
from runtime.precision import Precision
from sampling.conditions import Conditions, condition_texts
from sampling.picture_grids import uint8_grid
from sampling.sampler import Sampler, SamplingSettings
from sampling.trained_models import CLASS_NAMES, IMAGES_PER_CLASS
from scoring.scoring_data import ScoringData
from training.experiment import BatchPlan, ExperimentConfig, SampleConfig
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import check_parallel, gather_to_main, is_sharded, no_sync, whole_copy
from training.optimization.update import accumulate, build_update
from training.stage import Batch, OnSkip, Part, SnapshotWeights, Stateful, tell_nobody
from training.stages.code_counts import CodeCounts
from training.stages.conditions import condition_of, conditions_of_samples, first_batches
from training.stages.data_checks import (
    check_channels,
    check_condition,
    check_resolution,
    images_per_class,
    tokenizer_files,
)
from training.stages.frozen_tokenizer import VQVAEConfig, encoder_dtype, freeze, load_tokenizer
from training.stages.stage2_arch import Stage2ArchConfig, condition_sizes, stage2_arch, whole_arch, with_sizes_of
from training.stages.start_weights import load_into
from training.stages.training_codes import changed_codes, check_tokenizer, nearest_codes, training_codes
from training.stages.transformer_building import build_transformer
from training.stages.validation import validate_stage2


@dataclass
class Stage2Config:
    """A stage-2 YAML file: the published sections, typed.

    Attributes:
        dataset: which images, at which size, from where.
        arch: the RQ-Transformer.
        vqvae: the frozen stage-1 model.
        loss: of the codes.
        optimizer: of the transformer.
        experiment: how long, how large and how often.
        sampling: the defaults of the sampling scripts and of scores while training. null: as `experiment.sample`.
        seed: of initial weights, order and noise.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: Stage2ArchConfig = field(default_factory=Stage2ArchConfig)
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    loss: Stage2LossConfig = field(default_factory=Stage2LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    sampling: Optional[SampleConfig] = None
    seed: int = 0

    def completed(self) -> Stage2Config:
        """With the sizes of the stage-1 checkpoint, where one is named."""
        if not self.vqvae.ckpt:
            return self
        vqvae, tokenizer = load_tokenizer(self.vqvae, self.loss)
        return replace(self, vqvae=vqvae, arch=with_sizes_of(tokenizer, self.arch, self.dataset.vocab_size))

    def fitted_to(self, dataset: ImageDataset) -> Stage2Config:
        """With the condition that the data set gives, where `arch` leaves it open."""
        arch = self.arch
        if arch.vocab_size_cond is not None and arch.block_size_cond is not None:
            return self
        vocab_size, length = condition_sizes(dataset, arch.vocab_size_cond, arch.block_size_cond)
        return replace(self, arch=replace(arch, vocab_size_cond=vocab_size, block_size_cond=length))


def complete_arch(config: Stage2Config, tokenizer: RQVAE) -> RQTransformerConfig:
    """The arch section with what it leaves out and the tokenizer knows; without condition where none is said.

    Raises:
        ValueError: what it says does not fit the tokenizer; the key that says it.
    """
    return whole_arch(with_sizes_of(tokenizer, config.arch, config.dataset.vocab_size))


class Stage2:
    """The RQ-Transformer with everything that trains it, on the codes of a frozen RQ-VAE; a `training.stage.Stage`.

    Args:
        config: the typed experiment; its `arch` is completed from the tokenizer here, and `fitted_to` the data before.
        plan: batch and step counts.
        env: rank, world size and device.
    """

    name = "stage2"
    score_kind, score_split = "fid", "train"

    def __init__(self, config: Stage2Config, plan: BatchPlan, env: DistEnv) -> None:
        config.loss.validate()
        vqvae, tokenizer = load_tokenizer(config.vqvae, config.loss)
        experiment = config.experiment
        self.sampling = config.sampling or experiment.sample
        self.arch = complete_arch(config, tokenizer)
        config = replace(config, vqvae=vqvae, arch=stage2_arch(self.arch), sampling=self.sampling)
        self.config, self.plan, self.env = config, plan, env
        self.precision = Precision(experiment.precision, env.device, experiment.amp)
        check_parallel(experiment.parallel, env)
        self.encoder_dtype = encoder_dtype(vqvae, self.precision)
        self.encoder_compared = self.encoder_dtype is None
        self.changed_codes: Tensor | None = None  # share in the first batch of images, until it is told
        self.tokenizer = freeze(tokenizer, env.device, experiment.channels_last)
        self.tokenizer_digest = weights_digest(tokenizer)
        for settings in (experiment.sample, self.sampling):
            # refuses settings that could not draw
            settings_per_depth(
                self.arch.block_size[2], temperature=settings.temp, top_k=settings.top_k, top_p=settings.top_p
            )
        self.model, self.parallel = build_transformer(
            self.arch, experiment, env, self.precision, accumulates=plan.accumulation > 1
        )
        self.ema = EMA(self.model, self.arch.ema) if self.arch.ema is not None else None
        self.update = build_update(self.model, config.optimizer, experiment, plan, env, self.precision)
        self.code_counts = CodeCounts(tokenizer.quantizer.num_codes, env.device)
        # what pictures of samples are labelled with, once the data set is known
        self.class_names: tuple[str, ...] = ()
        self.caption_tokenizer: CaptionTokenizer | None = None
        self.images_per_class: list[int] | None = None
        if experiment.score.classes != "seen" and (self.arch.block_size_cond > 1 or self.arch.vocab_size_cond < 2):
            raise ValueError(
                f"experiment.score.classes={experiment.score.classes} needs a class-conditional model: this one has no "
                "classes"
            )

    def check_data(self, dataset: ImageDataset) -> None:
        """ValueError when the model cannot be trained on these images and their labels or captions."""
        check_resolution(dataset, self.tokenizer.config.ddconfig.image_size, "that of the stage-1 checkpoint")
        check_channels(dataset, self.tokenizer.config.ddconfig.in_channels, "the stage-1 checkpoint")
        check_condition(dataset, self.arch)
        check_tokenizer(dataset, self.tokenizer_digest, self.config.loss, self.tokenizer.quantizer.num_codes)
        self.class_names, self.caption_tokenizer = dataset.class_names, dataset.tokenizer
        if dataset.split == "train" and self.arch.block_size_cond == 1:
            self.images_per_class = images_per_class(dataset, self.arch.vocab_size_cond)

    def train_step(self, micro_batches: Iterable[Batch], step: int, on_skip: OnSkip = tell_nobody) -> dict[str, Tensor]:
        """One step on the global batch; see `training.stage.Stage`."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        count = self.plan.accumulation
        for index, batch in enumerate(micro_batches):
            with no_sync(self.parallel, enabled=index + 1 < count):
                loss, terms = self._loss(batch)
                self.update.backward(loss / count)
            accumulate(sums, terms, count)
        applied = self.update.step(step, sums, on_skip)
        if self.ema is not None and applied:
            self.ema.update(self.model, step)
        return sums

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config.loss
        device, dtype = self.env.device, self.encoder_dtype
        if dtype is not None and not self.encoder_compared and "image" in batch:
            self.changed_codes, self.encoder_compared = (
                changed_codes(self.tokenizer, batch["image"].to(device), dtype),
                True,
            )
        residual_BHWDE, codes_BHWD = training_codes(self.tokenizer, batch, config, device, dtype)
        self.code_counts.add(codes_BHWD)
        targets = None
        if config.type == "soft_target_cross_entropy":
            assert residual_BHWDE is not None, "`check_tokenizer` refuses codes without latents"
            depths = range(codes_BHWD.shape[-1])
            books = [self.tokenizer.searched_codebook(d) for d in depths]
            targets = SoftTargets(residual_BHWDE, books, config.temp)
        cond = condition_of(self.model, batch, self.env.device)
        with self.precision.autocast():
            output = self.parallel(codes_BHWD, self.tokenizer, cond)
        return stage2_loss(output, codes_BHWD, targets, cond, config)

    def window_metrics(self) -> dict[str, Any]:
        """The learning rate, and once the share of codes that an encoder in bf16 changes in the first batch.

        Also folds this window's code counts into the run's.
        """
        self.code_counts.reduce()
        changed, self.changed_codes = self.changed_codes, None
        told = {} if changed is None else {"codes_changed_by_bf16": changed.item()}
        return {"lr": self.update.learning_rate, **told}

    @property
    def keeps_average(self) -> bool:
        """Whether `arch.ema` asks for averaged weights."""
        return self.ema is not None

    def averaged(self) -> AbstractContextManager[None]:
        """Context with the averaged weights in place; does nothing without."""
        return nullcontext() if self.ema is None else self.ema.swap(self.model)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """`validate_stage2` of any batches with the current weights, beside the unigrams of the training codes."""
        return validate_stage2(self.model, self.tokenizer, batches, self.env.device, self.precision, self.code_counts)

    def pictures(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """A square of samples under their classes (of those that are trained) or captions, made on the main process."""
        model = self._model_to_sample(self.env.is_main)
        if model is None:
            return {}
        settings = self.config.experiment.sample
        number = settings.num_images
        conditions = conditions_of_samples(self.arch, first_batches(batches, number), self.images_per_class)
        (drawn,) = self._sampler(model, conditions, settings, batch_size=number).images(number)
        labels = condition_texts(conditions, conditions.of_samples(number), self.class_names, self.caption_tokenizer)
        return {"samples": uint8_grid(drawn["image"], columns=max(1, round(number**0.5)), image_labels=labels)}

    def images_to_score(self, data: ScoringData, num_images: int) -> Iterator[Batch]:
        """Samples 0, 1, ... with the run's `sampling` settings, as `main_sampling_fid.py` draws them.

        Their conditions are the classes that `experiment.score.classes` asks for, or captions of the validation split.
        """
        captions, arch = data.spread_float_batches("val", num_images, shared=False), self.arch
        counts = images_per_class(data.split("train"), arch.vocab_size_cond) if arch.block_size_cond == 1 else None
        conditions = conditions_of_samples(arch, captions, counts, self.config.experiment.score.classes)
        model = self._model_to_sample()
        assert model is not None, "every rank asked for one"
        sampler = self._sampler(model, conditions, self.sampling, data.batch_size)
        return sampler.images(num_images, self.env.rank, self.env.world_size)

    def _model_to_sample(self, wanted: bool = True) -> RQTransformer | None:
        """The whole model with the weights in place; every rank must call it, those that want none get None."""
        if is_sharded(self.model):
            return whole_copy(self.model, lambda: RQTransformer(self.arch), self.env.device, wanted)
        return self.model if wanted else None

    def _sampler(
        self, model: RQTransformer, conditions: Conditions, settings: SampleConfig, batch_size: int
    ) -> Sampler:
        return Sampler(
            self.tokenizer,
            model,
            conditions,
            SamplingSettings(
                settings.temp, settings.top_k, settings.top_p, seed=self.config.seed, batch_size=batch_size
            ),
            self.precision.amp_dtype,
        )

    def objects(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs; schedules and random states are derived, not stored."""
        objects: dict[str, Stateful] = {"model": self.model, "update": self.update, "code_counts": self.code_counts}
        if self.ema is not None:
            objects["ema"] = self.ema
        return objects

    def load_weights(self, path: Path) -> None:
        """Starts from trained weights: finetuning, evaluation."""
        load_into(self.model, load_rqtransformer(path).state_dict(), path)
        if self.ema is not None:
            try:
                averaged = load_rqtransformer(path, ema=True)
            except ValueError:  # no averaged weights in the file: the average starts from the raw ones
                averaged = self.model
            self.ema.load_state_dict(averaged.state_dict())

    def describe(self) -> str:
        """One line on the size of the network and the condition."""
        arch = self.arch
        kind = "a text" if arch.block_size_cond > 1 else "nothing" if arch.vocab_size_cond == 1 else "a class"
        return f"RQ-Transformer with {count_parameters(self.model):,} parameters, conditioned on {kind}"

    def parts(self) -> dict[str, Part]:
        """The transformer, and the model that its codes come from."""
        return {"transformer": Part(self.model, self.config.optimizer), "stage 1": Part(self.tokenizer, None)}

    def codes(self, batch: Batch) -> Tensor:
        """The nearest codes of a batch of images, latents or codes."""
        return nearest_codes(self.tokenizer, batch, self.env.device)

    def trial_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """That of a training step."""
        self.model.train()
        return self._loss(batch)

    def provenance(self) -> dict[str, Any]:
        """What a snapshot's metadata says beyond the progress: which stage-1 weights its codes come from."""
        return {"dataset": self.config.dataset.name, "tokenizer": self.tokenizer_digest}

    def snapshot(self) -> SnapshotWeights:
        """Raw and (where kept) EMA weights in the form that `rqtransformer.load_rqtransformer` reads.

        Empty on all but the main process; every rank must call it.
        """
        raw = gather_to_main(self.model.state_dict(), self.env.is_main)
        return raw, None if self.ema is None else gather_to_main(self.ema.state_dict(), self.env.is_main)

    def snapshot_facts(self, dataset: ImageDataset) -> dict[str, Any]:
        """Of a model that is conditioned on classes: how many images every class had (sampling asks for those alone),
        and what the classes are called.
        """
        arch = self.arch
        if arch.block_size_cond > 1 or arch.vocab_size_cond < 2:
            return {}
        counts = images_per_class(dataset, arch.vocab_size_cond)
        return {IMAGES_PER_CLASS: counts, CLASS_NAMES: list(dataset.class_names)}

    def snapshot_files(self, dataset: ImageDataset) -> dict[str, str]:
        """The tokenizer of the captions, for a model that is conditioned on them."""
        return tokenizer_files(dataset) if self.arch.block_size_cond > 1 else {}
