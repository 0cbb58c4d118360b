"""The config of a run, and the counts that follow from it; a run that is resumed keeps its own."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from runtime.config import load_config
from runtime.errors import UserError
from training.experiment import BatchPlan, fit_to_ranks, plan_batches
from training.launch.flags import LaunchSettings
from training.launch.resuming import ResumedRun
from training.stage import Config


def load_run_config(schema: type[Config], settings: LaunchSettings, resumed: ResumedRun | None) -> Config:
    """The config of -m; a resumed run keeps its own, which only `key=value` words and flags change."""
    file = settings.model_config if resumed is None else resumed.run_dir / "config.yaml"
    config = load_config(schema, file, settings.overrides)
    if resumed is not None and settings.seed not in (None, config.seed):
        raise UserError(f"--seed {settings.seed} differs from the resumed run's seed {config.seed}")
    seed = {} if settings.seed is None else {"seed": settings.seed}
    for key, value in {**settings.config_values, **seed}.items():
        section, _, name = key.rpartition(".")
        setattr(attrgetter(section)(config) if section else config, name, value)
    return config


def plan_run(config: Config, num_images: int, world_size: int, resumed: ResumedRun | None) -> tuple[Config, BatchPlan]:
    """The counts of a run, and its config: a resumed one keeps its global batch on any number of processes."""
    accumulation, schedule_ranks = config.optimizer.grad_accm_steps, None
    if resumed is not None:
        schedule_ranks = resumed.schedule_ranks
        experiment, accumulation = fit_to_ranks(config.experiment, accumulation, resumed.global_batch, world_size)
        optimizer = replace(config.optimizer, grad_accm_steps=accumulation)
        config = replace(config, experiment=experiment, optimizer=optimizer)
    return config, plan_batches(config.experiment, num_images, world_size, accumulation, schedule_ranks)
