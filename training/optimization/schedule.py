"""The published learning-rate schedule (linear warm-up, plateau, cosine) as a pure function of the optimizer step."""

import math
from dataclasses import dataclass

WARMUP_MODES = ("fix", "linear", "sqrt", "none")


@dataclass
class WarmupConfig:
    """`optimizer.warmup`, under its published field names; lengths in epochs (fractions allowed).

    Args:
        epoch (epochs): length of the linear rise; 0 starts at `init_lr` right away, where `multiplier` and the delay of
            `buffer_epoch` do not apply.
        multiplier: peak rate / `init_lr`.
        buffer_epoch (epochs): length of the plateau between the rise and the cosine.
        min_lr: where the cosine ends.
        mode: what the multiplier becomes: fix, max(1, m); linear, max(1, m * world size); sqrt, max(1, m * sqrt(world
            size)); none, m, also below 1.
        start_from_zero: rise from 0 (the very first optimizer step then changes nothing) or from `init_lr`.
    """

    epoch: float = 0.0
    multiplier: float = 1.0
    buffer_epoch: float = 0.0
    min_lr: float = 0.0
    mode: str = "fix"
    start_from_zero: bool = True


class LearningRateSchedule:
    """`at(step)` is the rate that optimizer step `step` uses; nothing is stored, so nothing has to be resumed.

    Published quirks kept for parity: the cosine lasts total - warm-up - buffer steps even without warm-up, where it
    starts at step 0, so that with a buffer but no warm-up it reaches `min_lr` early and rises again; a run longer than
    planned rises again too. Only whole steps count: a warm-up of 2.5 steps stays at what step 2 reached, 2 / 2.5 of the
    way, and a plateau that ends at 5.5 gives way to the first cosine step at 6. The published code computes the cosine
    from the previous rate, this one in closed form; and a warm-up shorter than one step goes straight to its peak here,
    where the published one would stay at its first rate, possibly 0.

    Args:
        init_lr: the optimizer's rate before any multiplier.
        warmup: the `optimizer.warmup` section.
        steps_per_epoch: optimizer steps of one epoch.
        max_epoch: planned length in epochs; fractions allowed.
        world_size: number of ranks, for the modes that scale with it.

    Raises:
        ValueError: an unknown mode, negative values, or an empty run.
    """

    def __init__(
        self, init_lr: float, warmup: WarmupConfig, steps_per_epoch: float, max_epoch: float, world_size: int = 1
    ) -> None:
        _check(init_lr, warmup)
        if steps_per_epoch <= 0 or max_epoch <= 0:
            raise ValueError(f"a schedule needs steps: steps_per_epoch {steps_per_epoch}, max_epoch {max_epoch}")
        self.total_steps = max_epoch * steps_per_epoch
        self.warmup_steps = warmup.epoch * steps_per_epoch
        buffer_steps = warmup.buffer_epoch * steps_per_epoch
        has_warmup = self.warmup_steps > 0
        self.cosine_start = math.floor(self.warmup_steps + buffer_steps) if has_warmup else 0
        self.cosine_steps = self.total_steps - self.warmup_steps - buffer_steps
        self.peak_lr = init_lr * _multiplier(warmup, world_size) if has_warmup else init_lr
        self.first_lr = 0.0 if warmup.start_from_zero else init_lr
        last_whole = math.floor(self.warmup_steps)
        self.plateau_lr = self._rising(last_whole) if last_whole > 0 else self.peak_lr
        self.min_lr = warmup.min_lr

    def at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self._rising(step)
        if step <= self.cosine_start or self.cosine_steps <= 0:
            return self.plateau_lr
        progress = (step - self.cosine_start) / self.cosine_steps
        return self.min_lr + (self.plateau_lr - self.min_lr) * (1.0 + math.cos(math.pi * progress)) / 2.0

    def never_reached(self) -> str:
        """A line where the run ends before its schedule gets anywhere: in the warm-up, or on the plateau after it."""
        last = self.at(max(0, math.ceil(self.total_steps) - 1))
        if self.warmup_steps >= self.total_steps:
            what = (
                f"the warm-up of {self.warmup_steps:g} steps (optimizer.warmup.epoch) is as long as the run or longer"
            )
        elif self.warmup_steps > 0 and self.cosine_start >= self.total_steps:
            what = f"warm-up and plateau (optimizer.warmup.buffer_epoch) last {self.cosine_start} steps, all of the run"
        else:
            return ""
        return f"{what}: {self.total_steps:g} steps end at a learning rate of {last:.3g} of {self.peak_lr:.3g}"

    def _rising(self, step: int) -> float:
        return self.first_lr + (self.peak_lr - self.first_lr) * (step / self.warmup_steps)


def _check(init_lr: float, warmup: WarmupConfig) -> None:
    if warmup.mode not in WARMUP_MODES:
        raise ValueError(f"unknown optimizer.warmup.mode {warmup.mode!r}, choose one of {list(WARMUP_MODES)}")
    values = {
        "init_lr": init_lr,
        "warmup.epoch": warmup.epoch,
        "warmup.multiplier": warmup.multiplier,
        "warmup.buffer_epoch": warmup.buffer_epoch,
        "warmup.min_lr": warmup.min_lr,
    }
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"optimizer.{name} must be a number >= 0, got {value}")


def _multiplier(warmup: WarmupConfig, world_size: int) -> float:
    if warmup.mode == "none":
        return warmup.multiplier
    scale = {"fix": 1.0, "linear": world_size, "sqrt": math.sqrt(world_size)}[warmup.mode]
    return max(1.0, warmup.multiplier * scale)
