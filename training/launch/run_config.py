"""The config of a run, and the counts that follow from it; a run that is resumed keeps its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from data import DatasetConfig
from data.config import KEEP, parse_transforms
from rqstack.arguments import plain_size
from runtime.config import load_config
from runtime.errors import UserError
from sampling.recorded_paths import with_absolute_paths, with_paths_that_exist
from sampling.trained_models import channels_of, resolution_of
from training.experiment import BatchPlan, fit_to_ranks, num_steps, plan_batches
from training.launch.continuation import edits, typed_by
from training.launch.flags import LaunchSettings
from training.launch.resume_rules import Change
from training.launch.resuming import ResumedRun
from training.schedules import schedule_of
from training.stage import Config, RunConfig
from training.stage1_checkpoint import stage1_checkpoint

RGB = 3  # channels of images where nothing is said
LATENTS = "latents"  # the type of data set that brings its own sizes
BATCH_SIZE, ACCUMULATION = "experiment.batch_size", "optimizer.grad_accm_steps"
# Settings of which one holds, with the word that clears each; a frequency in steps wins over one in epochs anyway.
EXCLUSIVE = (
    {"experiment.epochs": "null", "experiment.max_steps": "null"},
    {"experiment.save_ckpt_freq": "", "experiment.save_steps": "null"},
    {"experiment.test_freq": "", "experiment.test_steps": "null"},
    {"gan.loss.disc_start": "", "gan.loss.disc_start_step": "null"},
    {ACCUMULATION: "1", "experiment.total_batch_size": "null"},
)


def load_run_config(schema: type[Config], settings: LaunchSettings, run_dir: Path | None) -> Config:
    """The config of -m; a run that is resumed, in `run_dir`, keeps its own, which only `key=value` words and flags
    change.

    Of two settings that exclude each other, the one that the command line names last holds.
    """
    file = settings.model_config if run_dir is None else run_dir / "config.yaml"
    config = load_config(schema, file, [*settings.overrides, *_cleared(settings.overrides)])
    if run_dir is not None:
        config = with_paths_that_exist(config, typed_by(run_dir))
    seed = {} if settings.seed is None else {"seed": settings.seed}
    for key, value in {**settings.config_values, **seed}.items():
        section, _, name = key.rpartition(".")
        setattr(attrgetter(section)(config) if section else config, name, value)
    return config


def _cleared(overrides: Sequence[str]) -> list[str]:
    """Words that clear what an override given later excludes."""
    given = [key for key, _, value in (word.lstrip("+").partition("=") for word in overrides) if value != "null"]
    cleared = []
    for names in EXCLUSIVE:
        last = next((key for key in reversed(given) if key in names), None)
        others = [key for key in names if last is not None and key != last]
        # a batch that is said in both ways may agree, and is refused where it does not
        both = ACCUMULATION in names and any(key in given for key in others)
        cleared += [f"{key}={names[key]}" for key in others if names[key] and not both]
    return cleared


def with_images_of_stage1(config: Config) -> Config:
    """A config whose images have the size and the channels of the stage-1 model, where it does not say others.

    Raises:
        UserError: a run of stage 2 has no stage-1 checkpoint; said here, before the size of the images is missed.
    """
    if hasattr(config, "vqvae"):
        stage1_checkpoint(config.vqvae.ckpt)
    return with_channels_of_stage1(with_resolution_of_stage1(config))


def with_resolution_of_stage1(config: Config) -> Config:
    """A config whose images have the size of the stage-1 model that it names, where it does not say another one."""
    dataset, stage1 = config.dataset, getattr(getattr(config, "vqvae", None), "ckpt", None)
    said = dataset.resolution or dataset.image_resolution or parse_transforms(dataset.transforms)[1]
    if not stage1 or said or not Path(stage1).exists() or not (dataset.type or dataset.dataset):
        return config
    size = None if dataset.name == LATENTS else resolution_of(stage1)
    if size is None:
        return config
    resize = dataset.resize if size[0] == size[1] else KEEP
    return replace(config, dataset=replace(dataset, resolution=plain_size(*size), resize=resize))


def with_channels_of_stage1(config: Config) -> Config:
    """A config whose images have the channels of the stage-1 model that it names, where it does not say how many."""
    dataset, stage1 = config.dataset, getattr(getattr(config, "vqvae", None), "ckpt", None)
    if not stage1 or dataset.channels is not None or not Path(stage1).exists():
        return config
    if not (dataset.type or dataset.dataset) or dataset.name == LATENTS:
        return config
    channels = channels_of(stage1)
    return config if channels in (None, RGB) else replace(config, dataset=replace(dataset, channels=channels))


def config_before(schema: type[Config], resumed: ResumedRun) -> Config:
    """The config that a resumed run had."""
    return with_paths_that_exist(load_config(schema, resumed.run_dir / "config.yaml"), typed_by(resumed.run_dir))


def edited(settings: LaunchSettings, resumed: ResumedRun, config: Config, refused: bool) -> list[str]:
    """A line on what has been changed in the -m file since the resumed run began, which keeps its own config.

    Raises:
        UserError: it is `refused`, because the user has asked for this file to be resumed.
    """
    found = edits(resumed.run_dir, settings.model_config, config)
    if not found:
        return []
    rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
    line = (
        f"{settings.model_config} has been edited since the run began ({', '.join(found[:3])}{rest}); a resumed run "
        "keeps its own config: give key=value words"
    )
    if refused:
        raise UserError(f"{line}, or resume with -l {resumed.run_dir} alone")
    return [line]


def learning_rate_jump(before: Config, config: Config, plan: BatchPlan, step: int) -> list[str]:
    """A line on the learning rate where a resumed run has another one at `step` than it would have had."""
    old = replace(plan, total_steps=num_steps(before.experiment, plan.steps_per_epoch))
    then, now = schedule_of(before.optimizer, old).at(step), schedule_of(config.optimizer, plan).at(step)
    if then == now or step >= plan.total_steps:
        return []
    ending = f" and its {old.total_steps} steps are over" if step >= old.total_steps else ""
    return [f"the learning rate of step {step} becomes {now:.3g}; before the changes it was {then:.3g}{ending}"]


def recorded_config(config: RunConfig, planned: RunConfig, changed: Sequence[Change] | None) -> RunConfig:
    """What `config.yaml` of a run says: with absolute paths.

    Args:
        config: as the stage has completed it.
        planned: as it was before its batch was fitted to the processes of this start.
        changed: what a resumed run was told to change; None of a new run. What holds for one start is left out.
    """
    config = with_absolute_paths(config)
    if changed is None:
        return config
    fresh, planned = DatasetConfig(), with_absolute_paths(planned)
    fitted = any(change.key in (BATCH_SIZE, ACCUMULATION) for change in changed)
    batch = {} if fitted else {"experiment": planned.experiment, "optimizer": planned.optimizer}
    dataset = replace(config.dataset, accept_changed=fresh.accept_changed, accept_seen=fresh.accept_seen)
    return replace(config, dataset=dataset, **batch)


def plan_run(
    config: Config, num_images: int, world_size: int, resumed: ResumedRun | None, changed: Sequence[Change] = ()
) -> tuple[Config, BatchPlan]:
    """The counts of a run, and its config: a resumed one keeps its global batch on any number of processes.

    Raises:
        ValueError: the settings do not go together, or a resumed run would not keep its batch.
    """
    accumulation, schedule_ranks = config.optimizer.grad_accm_steps, None
    if resumed is not None:
        schedule_ranks = resumed.schedule_ranks
        _check_batch(config, world_size, resumed.global_batch, {change.key: change.after for change in changed})
        experiment, accumulation = fit_to_ranks(config.experiment, accumulation, resumed.global_batch, world_size)
        optimizer = replace(config.optimizer, grad_accm_steps=accumulation)
        config = replace(config, experiment=experiment, optimizer=optimizer)
    return config, plan_batches(config.experiment, num_images, world_size, accumulation, schedule_ranks)


def _check_batch(config: Config, world_size: int, global_batch: int, changed: Mapping[str, Any]) -> None:
    """UserError for a new batch size or accumulation of a resumed run that its steps cannot keep."""
    batch, accumulation = config.experiment.batch_size, config.optimizer.grad_accm_steps
    size = {key: changed[key] for key in (BATCH_SIZE, ACCUMULATION) if key in changed}
    if not size:
        return
    micro_steps = accumulation if ACCUMULATION in size else 1
    per_step = batch * world_size * micro_steps
    fits = min(batch, micro_steps) > 0 and (
        per_step == global_batch if ACCUMULATION in size else not global_batch % per_step
    )
    if not fits:
        said = " ".join(f"{key}={value}" for key, value in size.items())
        raise UserError(
            f"{said}: the resumed run takes {global_batch} images per step on {world_size} processes, which "
            "batch_size x processes x micro-steps must make"
        )
