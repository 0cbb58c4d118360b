"""The learning rates of a run, from its `optimizer` section and its counts."""

from __future__ import annotations

from collections.abc import Iterable

from training.experiment import BatchPlan
from training.optimization.optimizer import OptimizerConfig
from training.optimization.schedule import LearningRateSchedule


def schedule_of(optimizer: OptimizerConfig, plan: BatchPlan, first_step: int = 0) -> LearningRateSchedule:
    """The learning rates of a network that is trained from `first_step` to the end of the run."""
    epochs = plan.epoch(max(1, plan.total_steps - first_step))
    return LearningRateSchedule(optimizer.init_lr, optimizer.warmup, plan.steps_per_epoch, epochs, plan.schedule_ranks)


def never_reached(updates: Iterable[object]) -> list[str]:
    """A line for every schedule among the objects of a run that ends before it gets anywhere."""
    schedules = [getattr(update, "schedule", None) for update in updates]
    notes = [schedule.never_reached() for schedule in schedules if isinstance(schedule, LearningRateSchedule)]
    return list(dict.fromkeys(note for note in notes if note))
