"""What one optimizer step of stage 2 is: frozen tokenizer -> codes and targets -> body and head -> loss -> step.

Legend: B batch, C channels, H W image or code grid, D code depth, K codebook size, V vocabulary, E code-vector size.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from data import DatasetConfig, ImageDataset
from evaluation.protocol import balanced_conditions, shard_indices, to_uint8
from rqstack.snapshots import weights_digest
from rqtransformer import RQTransformer, RQTransformerConfig, load_rqtransformer, sample
from rqtransformer.decoding.sampling_request import settings_per_depth
from rqtransformer.model import count_parameters
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss
from rqvae import RQVAE, load_rqvae
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import Precision
from sampling.picture_grids import image_grid
from sampling.trained_models import check_stages_fit, resolve_checkpoint
from scoring.scoring_data import Batches, ScoringData
from training.experiment import BatchPlan, ExperimentConfig, SampleConfig
from training.launch.data_checks import check_condition, check_resolution
from training.launch.start_weights import load_into
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import check_parallel, gather_to_main, is_sharded, no_sync, whole_copy
from training.optimization.update import accumulate, build_update
from training.stages.training_codes import check_tokenizer, training_codes
from training.stages.transformer_building import build_transformer
from training.stages.validation import CodeCounts, condition_of, validate_stage2


@dataclass
class VQVAEConfig:
    """The `vqvae` section: which stage-1 checkpoint makes the codes, and whether its EMA weights do."""

    ckpt: Optional[str] = None
    ema: bool = False


@dataclass
class Stage2Config:
    """A stage-2 YAML file: the published sections, typed. `sampling` holds the defaults of the sampling scripts."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: RQTransformerConfig = field(default_factory=RQTransformerConfig)
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    loss: Stage2LossConfig = field(default_factory=Stage2LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    sampling: Optional[SampleConfig] = None
    seed: int = 0


def complete_arch(config: Stage2Config, tokenizer: RQVAE) -> RQTransformerConfig:
    """The arch section with the vocabulary filled in, from `dataset.vocab_size` or the tokenizer."""
    arch = config.arch
    if arch.vocab_size is None:
        vocab = config.dataset.vocab_size
        arch = replace(arch, vocab_size=vocab if vocab is not None else list(tokenizer.quantizer.num_codes))
    check_stages_fit(arch, tokenizer)
    return arch


def find_tokenizer(config: VQVAEConfig) -> VQVAEConfig:
    """The section with the very checkpoint it stands for: the newest snapshot of a run, not the run, which goes on."""
    if not config.ckpt:
        raise ValueError("no stage-1 checkpoint: give -v/--vqvae PATH or vqvae.ckpt")
    return replace(config, ckpt=str(resolve_checkpoint(config.ckpt)))


class Stage2:
    """The RQ-Transformer with everything that trains it, on the codes of a frozen RQ-VAE.

    Args:
        config: the typed experiment; its `arch` is completed from the tokenizer here.
        plan: batch and step counts.
        env: rank, world size and device.
        validation_batches: callable giving this rank's share of the validation split, each image once.
    """

    name = "stage2"
    score_kind, score_split = "fid", "train"

    def __init__(
        self,
        config: Stage2Config,
        plan: BatchPlan,
        env: DistEnv,
        validation_batches: Callable[[], Iterable[dict[str, Tensor]]],
    ):
        config.loss.validate()
        vqvae = find_tokenizer(config.vqvae)
        tokenizer = load_rqvae(vqvae.ckpt, ema=vqvae.ema)
        if config.loss.type == "soft_target_cross_entropy" and not tokenizer.quantizer.fixed_code_vectors:
            raise ValueError(
                f"loss.type {config.loss.type!r} needs code vectors that follow from their codes alone; bottleneck "
                f"{tokenizer.config.bottleneck_type!r} has others: choose cross_entropy"
            )
        config = replace(
            config,
            vqvae=vqvae,
            arch=complete_arch(config, tokenizer),
            sampling=config.sampling or config.experiment.sample,
        )
        self.config, self.plan, self.env = config, plan, env
        self.validation_batches = validation_batches
        experiment = config.experiment
        self.precision = Precision(experiment.precision, env.device, experiment.amp)
        check_parallel(experiment.parallel, env)
        self.tokenizer = tokenizer.to(env.device).eval().requires_grad_(False)
        if experiment.channels_last:
            self.tokenizer = self.tokenizer.to(memory_format=torch.channels_last)
        self.tokenizer_digest = weights_digest(tokenizer)
        for settings in (experiment.sample, config.sampling):
            self._check_sampling(settings)
        self.model, self.parallel = build_transformer(
            config.arch, experiment, env, self.precision, accumulates=plan.accumulation > 1
        )
        self.ema = EMA(self.model, config.arch.ema) if config.arch.ema is not None else None
        self.update = build_update(self.model, config.optimizer, experiment, plan, env, self.precision)
        self.code_counts = CodeCounts(tokenizer.quantizer.num_codes, env.device)

    def _check_sampling(self, settings: SampleConfig) -> None:
        """Refuses settings that could not draw."""
        settings_per_depth(self.config.arch.block_size[2], settings.temp, settings.top_k, settings.top_p)

    def check_data(self, dataset: ImageDataset) -> None:
        """ValueError when the model cannot be trained on these images and their labels or captions."""
        check_resolution(dataset, self.tokenizer.config.ddconfig.resolution, "that of the stage-1 checkpoint")
        check_condition(dataset, self.config.arch)
        check_tokenizer(dataset, self.tokenizer_digest, self.config.loss)

    def train_step(self, micro_batches: Iterable[dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        """One step on the global batch; see `training.loop.loop.Stage`."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        count = self.plan.accumulation
        for index, batch in enumerate(micro_batches):
            with no_sync(self.parallel, enabled=index + 1 < count):
                loss, terms = self._loss(batch)
                self.update.backward(loss / count)
            accumulate(sums, terms, count)
        applied = self.update.step(step, sums)
        if self.ema is not None and applied:
            self.ema.update(self.model, step)
        return sums

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config.loss
        residual_BHWDE, codes_BHWD = training_codes(self.tokenizer, batch, config, self.env.device)
        self.code_counts.add(codes_BHWD)
        targets = None
        if config.type == "soft_target_cross_entropy":
            depths = range(codes_BHWD.shape[-1])
            books = [self.tokenizer.searched_codebook(d) for d in depths]
            targets = SoftTargets(residual_BHWDE, books, config.temp)
        cond = condition_of(self.model, batch, self.env.device)
        with self.precision.autocast():
            output = self.parallel(codes_BHWD, self.tokenizer, cond)
        return stage2_loss(output, codes_BHWD, targets, cond, config)

    def window_metrics(self) -> dict[str, Any]:
        """The learning rate; also folds this window's code counts into the run's."""
        self.code_counts.reduce()
        return {"lr": self.update.learning_rate}

    def averaged(self) -> contextlib.AbstractContextManager:
        """Context with the EMA weights in place; does nothing without EMA."""
        return self.ema.swap(self.model) if self.ema is not None else contextlib.nullcontext()

    def validate(self) -> dict[str, Any]:
        """Per-depth likelihood and accuracy of the validation split, with EMA weights where the run keeps them."""
        with self.averaged():
            return self.evaluate(self.validation_batches())

    def evaluate(self, batches: Iterable[dict[str, Tensor]]) -> dict[str, Any]:
        """`validate_stage2` of any batches with the current weights, beside the unigrams of the training codes."""
        return validate_stage2(self.model, self.tokenizer, batches, self.env.device, self.precision, self.code_counts)

    def _model_to_sample(self, wanted: bool = True) -> RQTransformer | None:
        """The whole model with its current weights; every rank must call it, those that want none get None."""
        if not is_sharded(self.model):
            return self.model
        return whole_copy(self.model, lambda: RQTransformer(self.config.arch), self.env.device, wanted)

    def pictures(self) -> dict[str, Tensor]:
        """A grid of samples, classes in rows, made on the main process."""
        if not (distributed.is_main() or is_sharded(self.model)):
            return {}
        with self.averaged():
            model = self._model_to_sample(wanted=distributed.is_main())
            if model is None:
                return {}
            settings = self.config.experiment.sample
            conditions = self._preview_conditions(settings.num_images)
            codes_BHWD = sample(
                model,
                self.tokenizer,
                conditions,
                num_samples=settings.num_images,
                temperature=settings.temp,
                top_k=settings.top_k,
                top_p=settings.top_p,
                seed=self.config.seed,
                amp_dtype=self.precision.amp_dtype,
            )
        images = [self.tokenizer.decode_code(part) for part in codes_BHWD.split(16)]
        return {"samples": image_grid(torch.cat(images).float(), columns=max(1, round(settings.num_images**0.5)))}

    def images_to_score(self, data: ScoringData, num_images: int) -> Batches:
        """Samples 0, 1, ... with the run's `sampling` settings, as `main_sampling_fid.py` draws them.

        Their conditions are the classes in turn, or captions of the validation split.
        """
        settings = self.config.sampling
        conditions = self._conditions_to_score(data, num_images)
        mine = torch.tensor(shard_indices(num_images, self.env.rank, self.env.world_size), dtype=torch.long)
        model = self._model_to_sample()
        for index_B in mine.split(data.batch_size):
            codes_BHWD = sample(
                model,
                self.tokenizer,
                None if conditions is None else conditions[index_B],
                indices=index_B,
                temperature=settings.temp,
                top_k=settings.top_k,
                top_p=settings.top_p,
                seed=self.config.seed,
                amp_dtype=self.precision.amp_dtype,
            )
            yield {"image": to_uint8(self.tokenizer.decode_code(codes_BHWD)), "index": index_B}

    def _conditions_to_score(self, data: ScoringData, num_images: int) -> Tensor | None:
        if self.config.arch.block_size_cond > 1:
            batches = data.spread_float_batches("val", num_images, shared=False)
            captions = torch.cat([batch["cond"] for batch in batches])
            return captions[torch.arange(num_images) % len(captions)].to(self.env.device)
        if self.config.arch.vocab_size_cond > 1:
            return balanced_conditions(num_images, self.config.arch.vocab_size_cond).to(self.env.device)
        return None

    def _preview_conditions(self, num_images: int) -> Tensor | None:
        if self.config.arch.block_size_cond > 1:
            captions = torch.cat([batch["cond"] for batch in self._first_batches(num_images)])
            return captions[torch.arange(num_images) % len(captions)].to(self.env.device)
        if self.config.arch.vocab_size_cond > 1:
            return balanced_conditions(num_images, self.config.arch.vocab_size_cond).to(self.env.device)
        return None

    def _first_batches(self, num_images: int) -> Iterator[dict[str, Tensor]]:
        """Validation batches until they hold `num_images`, or all there are."""
        for batch in self.validation_batches():
            yield batch
            num_images -= len(batch["label"])
            if num_images <= 0:
                return

    def objects(self) -> dict[str, Any]:
        """Everything that a resumed run needs; schedules and random states are derived, not stored."""
        objects = {"model": self.model, "update": self.update, "code_counts": self.code_counts}
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
        arch = self.config.arch
        kind = "a text" if arch.block_size_cond > 1 else "nothing" if arch.vocab_size_cond == 1 else "a class"
        return f"RQ-Transformer with {count_parameters(self.model):,} parameters, conditioned on {kind}"

    def provenance(self) -> dict[str, Any]:
        """What a snapshot's metadata says beyond the progress: which stage-1 weights its codes come from."""
        return {"dataset": self.config.dataset.name, "tokenizer": self.tokenizer_digest}

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Raw and (where kept) EMA weights in the form that `rqtransformer.load_rqtransformer` reads.

        Empty on all but the main process; every rank must call it.
        """
        raw = gather_to_main(self.model.state_dict(), self.env.is_main)
        return raw, None if self.ema is None else gather_to_main(self.ema.state_dict(), self.env.is_main)
