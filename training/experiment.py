"""The `experiment` section of a YAML file, and the batch and step arithmetic that follows from it."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, List, Optional

from omegaconf import MISSING

from rqtransformer.recomputation import CHOICES as RECOMPUTATIONS
from runtime.records.loggers import LOGGERS
from sampling.choices import CLASSES

CONSOLES = ("short", "full")
IN_LOOP_FEATURES = ("auto", "inception", "efficientnet-lite0", "classifier")
POSITIVE_OR_UNSET = (
    "batch_size",
    "total_batch_size",
    "epochs",
    "max_steps",
    "save_steps",
    "save_minutes",
    "test_steps",
    "log_steps",
    "save_ckpt_freq",
    "test_freq",
    "keep_checkpoints",
    "keep_every_steps",
    "keep_snapshots",
    "test_images",
    "grid_images",
    "spike_factor",
    "spike_window",
    "hang_timeout",
    "signal_steps",
)


@dataclass
class SampleConfig:
    """Sampling settings: of the preview grids that stage 2 logs, and the defaults of the sampling scripts.

    Attributes:
        top_k: draw among that many likeliest codes; one value or one per depth. null: all.
        top_p: draw among the likeliest codes that together have this probability; one value or one per depth. null:
            all.
        temp: temperature of the draw; one value or one per depth.
        num_images: of a preview grid.
    """

    top_k: Any = None
    top_p: Any = None
    temp: Any = 1.0
    num_images: int = 64


@dataclass
class InLoopScoreConfig:
    """rFID of reconstructions (stage 1) or FID of samples (stage 2) while training; off without `every_steps`.

    The averaged weights are scored, or the raw ones where no average is kept. Where no feature network can be had, one
    warning says so and training goes on without.

    Attributes:
        every_steps (steps): between two scores, and after the last step. null: never.
        num_images: of one score.
        features: auto (Inception where its weights are found; else, for colour images, efficientnet-lite0 where its
            packages are installed; else the data set's own classifier), inception, efficientnet-lite0 or classifier.
        features_weights: file with the weights of the feature network. null: where they are looked for.
        features_cache: folder of trained classifiers and of statistics.
        keep_best: keep the snapshot of the lowest distance in `snapshots/best`.
        classes: of the samples, as in `main_sampling_fid.py --classes`: seen, all or frequencies (each class as often
            as among the training images, which the name of the distance says).
    """

    every_steps: Optional[int] = None
    num_images: int = 2048
    features: str = "auto"
    features_weights: Optional[str] = None
    features_cache: str = "runs/classifiers"
    keep_best: bool = True
    classes: str = "seen"


@dataclass
class ExperimentConfig:
    """How long, how large and how often. The first keys have the published names, counted in epochs; a frequency in
    steps (`*_steps`) wins over the one in epochs.

    Attributes:
        batch_size (images): per process and per micro-step.
        total_batch_size (images): of one optimizer step over all processes; the number of accumulated micro-steps
            follows from it. null: as many as one micro-step has, times `optimizer.grad_accm_steps`.
        epochs (epochs): length of the run; either this or `max_steps`.
        save_ckpt_freq (epochs): between two checkpoints with snapshot.
        test_freq (epochs): between two validations with pictures.
        amp: the published switch of mixed precision, where `precision` is auto: false is fp32; true and null are bf16
            on a GPU.
        sample: of the preview grids of stage 2.
        max_steps (steps): length of the run; either this or `epochs`.
        save_steps (steps): between two checkpoints with snapshot. null: as `save_ckpt_freq` says.
        save_minutes (minutes): the first checkpoint comes after that time at the latest, whatever the frequencies say.
            null: as they say.
        test_steps (steps): between two validations with pictures. null: as `test_freq` says.
        log_steps (steps): between two lines of the log.
        precision: auto (bf16 on a GPU unless `amp` is false, fp32 on a CPU), fp32, bf16 or fp16.
        parallel: ddp (every process holds the whole model), fsdp (a share of every parameter; stage 2) or none (one
            process).
        channels_last: memory layout of convolutions; the faster one.
        compile: compile every transformer block (stage 2), the networks (stage 1).
        deterministic: make a GPU take algorithms that give the same bits every time, which an exact resume there needs;
            without it cuDNN measures which are the fastest. Not verified on a GPU; a CPU is exact either way.
        gradient_checkpointing: work activations out again in the backward pass instead of keeping them: false, true,
            or, in stage 2, selective, which keeps the products of matrices.
        num_workers (processes): that read data, per process; 0 reads in the process itself.
        keep_checkpoints: the last ones that stay.
        keep_every_steps (steps): checkpoints of steps that are multiples of it stay for ever. null: none do.
        async_checkpoint: go on training while a checkpoint is written.
        keep_snapshots: the last ones that stay. null: all.
        non_finite: after a step with a non-finite loss: stop, or skip it; either way its batch is kept under `faults/`.
        max_skipped_steps (steps): that `non_finite: skip` leaves out before the run stops.
        max_worker_deaths: data workers that are replaced before the run stops.
        spike_factor: warn of a loss more than that many deviations above the median of the last steps. null: never.
        spike_window (steps): of that median.
        min_code_usage: warn of a codebook of which a log window used less than this share at some depth.
        hang_timeout (seconds): a rank that does not move for so long ends the run, which says where every rank stands.
            null: never.
        signal_steps (steps): after a SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 the ranks agree to stop at the next multiple.
        count_flops: count the operations of a step for the log line.
        console: short (a line of 100 columns for each interval) or full (all numbers); the files hold everything either
            way.
        report: write the page of `python -m training.report` into the run directory with every snapshot.
        loggers: tensorboard, trackio, wandb (the latter two are packages of their own); one that fails is a warning.
        test_images: of a validation, spread evenly over the split. null: all.
        grid_images: in the pictures of stage 1.
        score: scores while training.
    """

    batch_size: int = MISSING
    total_batch_size: Optional[int] = None
    epochs: Optional[float] = None
    save_ckpt_freq: float = 1.0
    test_freq: float = 1.0
    amp: Optional[bool] = None
    sample: SampleConfig = field(default_factory=SampleConfig)

    max_steps: Optional[int] = None
    save_steps: Optional[int] = None
    save_minutes: Optional[float] = 10.0
    test_steps: Optional[int] = None
    log_steps: int = 50
    precision: str = "auto"
    parallel: str = "ddp"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    gradient_checkpointing: Any = False
    num_workers: int = 4
    keep_checkpoints: int = 2
    keep_every_steps: Optional[int] = None
    async_checkpoint: bool = True
    keep_snapshots: Optional[int] = None
    non_finite: str = "stop"
    max_skipped_steps: int = 100
    max_worker_deaths: int = 10
    spike_factor: Optional[float] = 10.0
    spike_window: int = 200
    min_code_usage: float = 0.02
    hang_timeout: Optional[float] = 1800.0
    signal_steps: int = 10
    count_flops: bool = True
    console: str = "short"
    report: bool = False
    loggers: List[str] = field(default_factory=lambda: ["tensorboard"])
    test_images: Optional[int] = None
    grid_images: int = 8
    score: InLoopScoreConfig = field(default_factory=InLoopScoreConfig)


@dataclass(frozen=True)
class BatchPlan:
    """Everything that is counted: batch sizes, steps per epoch, total steps and the step frequencies."""

    num_images: int
    micro_batch: int
    accumulation: int
    world_size: int
    steps_per_epoch: int
    total_steps: int
    save_steps: int
    test_steps: int
    log_steps: int
    schedule_ranks: int = 1  # the processes the run was started with; learning rates that scale with them stay

    @property
    def global_batch(self) -> int:
        """Images of one optimizer step over all processes and micro-steps."""
        return self.micro_batch * self.accumulation * self.world_size

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` optimizer steps; the unit the published schedules count in."""
        return step / self.steps_per_epoch


@dataclass(frozen=True)
class RunPosition:
    """Where a run stands: `step` optimizer steps done, on `images_seen` images of all ranks."""

    step: int = 0
    images_seen: int = 0


def plan_batches(
    config: ExperimentConfig,
    num_images: int,
    world_size: int,
    grad_accm_steps: int = 1,
    schedule_ranks: int | None = None,
) -> BatchPlan:
    """Turns the experiment section into counts, and refuses arithmetic that does not work out.

    Raises:
        ValueError: naming the keys and values that do not fit, before anything is built.
    """
    _check(config)
    accumulation = _accumulation(config, world_size, grad_accm_steps)
    global_batch = config.batch_size * world_size * accumulation
    steps_per_epoch = math.ceil(num_images / global_batch)
    if (config.epochs is None) == (config.max_steps is None):
        raise ValueError("set exactly one of experiment.epochs and experiment.max_steps")

    def in_steps(steps: int | None, epochs: float) -> int:
        return steps if steps is not None else max(1, round(epochs * steps_per_epoch))

    return BatchPlan(
        num_images=num_images,
        micro_batch=config.batch_size,
        accumulation=accumulation,
        world_size=world_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=num_steps(config, steps_per_epoch),
        save_steps=in_steps(config.save_steps, config.save_ckpt_freq),
        test_steps=in_steps(config.test_steps, config.test_freq),
        log_steps=config.log_steps,
        schedule_ranks=schedule_ranks or world_size,
    )


def num_steps(config: ExperimentConfig, steps_per_epoch: int) -> int:
    """The length of a run in optimizer steps."""
    return config.max_steps or math.ceil((config.epochs or 0) * steps_per_epoch)


def _accumulation(config: ExperimentConfig, world_size: int, grad_accm_steps: int) -> int:
    """Micro-steps of one optimizer step."""
    if grad_accm_steps < 1:
        raise ValueError(f"optimizer.grad_accm_steps must be at least 1, got {grad_accm_steps}")
    per_micro_step = config.batch_size * world_size
    if config.total_batch_size is None:
        return grad_accm_steps
    accumulation, remainder = divmod(config.total_batch_size, per_micro_step)
    if remainder or not accumulation:
        raise ValueError(
            f"experiment.total_batch_size={config.total_batch_size} is not a multiple of experiment.batch_size="
            f"{config.batch_size} x {world_size} processes = {per_micro_step}"
        )
    if grad_accm_steps not in (1, accumulation):
        raise ValueError(
            f"optimizer.grad_accm_steps={grad_accm_steps} contradicts experiment.total_batch_size="
            f"{config.total_batch_size}, which needs {accumulation}"
        )
    return accumulation


def fit_to_ranks(
    config: ExperimentConfig, grad_accm_steps: int, global_batch: int, world_size: int
) -> tuple[ExperimentConfig, int]:
    """Makes a resumed run keep its `global_batch`, and so its order of samples, on another number of processes.

    Returns:
        The section and the accumulation to go on with; the batch size per process is never a larger one, and nothing
        changes where the given ones make `global_batch` already.

    Raises:
        ValueError: the processes cannot share that batch, or `total_batch_size` was set to another one.
    """
    if config.total_batch_size not in (None, global_batch):
        raise ValueError(
            f"experiment.total_batch_size={config.total_batch_size}: the resumed run takes {global_batch} images "
            "per step"
        )
    accumulation = 1 if config.total_batch_size is not None else grad_accm_steps
    if config.total_batch_size is None and config.batch_size * world_size * accumulation == global_batch:
        return config, grad_accm_steps
    per_process, remainder = divmod(global_batch, world_size)
    if remainder or not per_process:
        fitting = [str(ranks) for ranks in range(1, global_batch + 1) if global_batch % ranks == 0]
        raise ValueError(
            f"the resumed run takes {global_batch} images per step, which {world_size} processes cannot share: start "
            f"{', '.join(fitting)} processes"
        )
    sizes = range(1, min(config.batch_size, per_process) + 1)
    batch_size = max(size for size in sizes if per_process % size == 0)
    return replace(config, batch_size=batch_size, total_batch_size=global_batch), 1


def _check(config: ExperimentConfig) -> None:
    for name in POSITIVE_OR_UNSET:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"experiment.{name}={value} must be positive")
    if config.max_worker_deaths < 0 or not 0 <= config.min_code_usage < 1:
        raise ValueError(
            f"experiment.max_worker_deaths={config.max_worker_deaths} must not be negative and "
            f"experiment.min_code_usage={config.min_code_usage} lie between 0 and 1"
        )
    if config.sample.num_images < 1 or config.max_skipped_steps < 0:
        raise ValueError(
            f"experiment.sample.num_images={config.sample.num_images} must be positive and "
            f"experiment.max_skipped_steps={config.max_skipped_steps} not negative"
        )
    if unknown := [name for name in config.loggers if name not in LOGGERS]:
        raise ValueError(f"experiment.loggers={unknown[0]!r}: choose from {', '.join(LOGGERS)}")
    if config.console not in CONSOLES:
        raise ValueError(f"experiment.console={config.console!r}: choose from {', '.join(CONSOLES)}")
    if config.non_finite not in ("stop", "skip"):
        raise ValueError(f"experiment.non_finite={config.non_finite!r}: choose from stop, skip")
    if config.gradient_checkpointing not in RECOMPUTATIONS:
        raise ValueError(
            f"experiment.gradient_checkpointing={config.gradient_checkpointing!r}: choose from false, true, selective"
        )
    if config.num_workers < 0:
        raise ValueError(f"experiment.num_workers={config.num_workers} must not be negative")
    _check_score(config.score)


def _check_score(score: InLoopScoreConfig) -> None:
    if score.every_steps is not None and score.every_steps < 1 or score.num_images < 2:
        raise ValueError(
            f"experiment.score.every_steps={score.every_steps} must be positive and experiment.score.num_images="
            f"{score.num_images} at least 2"
        )
    if score.classes not in CLASSES:
        raise ValueError(f"experiment.score.classes={score.classes!r}: choose from {', '.join(CLASSES)}")
    if score.features not in IN_LOOP_FEATURES:
        raise ValueError(f"experiment.score.features={score.features!r}: choose from {', '.join(IN_LOOP_FEATURES)}")
