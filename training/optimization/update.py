"""One optimizer update: learning rate, unscaling, clipping, the non-finite policy, the step itself."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError
from runtime.precision import Precision
from training.experiment import BatchPlan, ExperimentConfig
from training.optimization.optimizer import (
    OptimizerConfig,
    allocate_optimizer_state,
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
)
from training.optimization.schedule import LearningRateSchedule
from training.schedules import schedule_of


class ScaledUpdate:
    """An optimizer with its schedule, its loss scaler and its policy for non-finite gradients.

    With `experiment.non_finite: stop` nothing is read back here; the loop finds a non-finite loss at its next log line,
    before any checkpoint. With `skip` every step reads one flag from the device, leaves the weights alone when a
    gradient is not finite, and stops after `max_skipped_steps`.

    first_step: the training step from which `schedule` counts.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LearningRateSchedule,
        scaler: torch.amp.GradScaler,
        max_norm: float | None,
        experiment: ExperimentConfig,
        first_step: int = 0,
    ) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.max_norm, self.first_step = max_norm, first_step
        self.skip_non_finite = experiment.non_finite == "skip"
        self.max_skipped = experiment.max_skipped_steps
        self.skipped = 0
        self.learning_rate = schedule.at(0)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` to the gradients gathered since the last step."""
        self.scaler.scale(loss).backward()

    def backward_from(self, output: Tensor, gradient: Tensor, loss: Tensor) -> None:
        """`backward`, in one pass, of `loss` and of what has already come back to `output`.

        Args:
            output: of the network that is trained, with its graph.
            gradient: of the losses of `output` at it, times `loss_scale`.
            loss: a further one, not scaled, which may come without a graph.
        """
        scaled = self.scaler.scale(loss)
        if scaled.requires_grad:
            torch.autograd.backward([output, scaled], [gradient, None])
        else:
            output.backward(gradient)

    def loss_scale(self) -> Tensor | float:
        """The factor by which losses are scaled at the moment: 1.0, or a scalar on the device where there is scaling.

        Nothing is read back from the device for it.
        """
        if not self.scaler.is_enabled():
            return 1.0
        device = self.parameters[0].device
        return self.scaler.scale(torch.ones((), device=device))

    def step(
        self,
        step: int,
        metrics: dict[str, Tensor],
        on_skip: Callable[[int, dict[str, float]], None] | None = None,
        prefix: str = "",
    ) -> bool:
        """Applies the gathered gradients with the learning rate of `step`; adds the gradient norm to `metrics`.

        Args:
            step: the training step.
            metrics: the losses of the step; a number that is not finite skips it, where that is allowed.
            on_skip: told the step and the non-finite numbers, on every rank.
            prefix: of the names that are added.

        Returns:
            False when the step was skipped because a loss or a gradient was not finite. What a loss scaler leaves out
            in fp16 is not told.
        """
        self.learning_rate = self.schedule.at(step - self.first_step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, self.max_norm)
        # loss scaling overflows now and then by design: under fp16 only the losses are judged, not the gradients
        judged = list(metrics.values()) if self.scaler.is_enabled() else [norm, *metrics.values()]
        healthy = not self.skip_non_finite or self._finite(judged, metrics, step, on_skip)
        applied = self._apply(healthy)
        self.optimizer.zero_grad(set_to_none=True)
        if not self.scaler.is_enabled():
            metrics[f"{prefix}grad_norm"] = norm if applied else torch.zeros_like(norm)
        if self.skip_non_finite:
            metrics[f"{prefix}skipped_steps"] = norm.new_full((), float(self.skipped))
        return applied

    def _apply(self, healthy: bool) -> bool:
        """Steps the optimizer if allowed; returns that.

        A loss scaler leaves out steps that overflowed, on the device: to learn which would mean to wait for it.
        """
        if healthy:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return healthy

    def _finite(
        self,
        judged: list[Tensor],
        metrics: dict[str, Tensor],
        step: int,
        on_skip: Callable[[int, dict[str, float]], None] | None,
    ) -> bool:
        bad = (~torch.isfinite(torch.stack([value.detach().float().reshape(()) for value in judged]))).any()
        if distributed.all_reduce_sum_(bad.float()).item() == 0:
            return True
        self.skipped += 1
        if on_skip is not None:
            norm = {} if len(judged) == len(metrics) else {"gradient norm": judged[0]}
            on_skip(step, _non_finite({**metrics, **norm}))
        for name, value in metrics.items():
            metrics[name] = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
        if self.skipped > self.max_skipped:
            raise UserError(
                f"{self.skipped} steps had non-finite losses or gradients, more than experiment.max_skipped_steps="
                f"{self.max_skipped}; the last one was step {step}; the last checkpoint is kept"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Optimizer moments, loss scale and the count of skipped steps."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def allocate_state(self) -> None:
        """Gives the optimizer its moments before the first step, so that a sharded checkpoint is read into them."""
        allocate_optimizer_state(self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty of a run that was not in fp16: the scale then starts anew
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def build_update(
    module: nn.Module,
    optimizer: OptimizerConfig,
    experiment: ExperimentConfig,
    plan: BatchPlan,
    env: DistEnv,
    precision: Precision,
    first_step: int = 0,
) -> ScaledUpdate:
    """The update of one network as the `optimizer` section describes it.

    A network that joins at `first_step` has its own schedule over the steps that are left, warm-up included.
    """
    schedule = schedule_of(optimizer, plan, first_step)
    return ScaledUpdate(
        module,
        build_optimizer(module, optimizer, env.device),
        schedule,
        precision.scaler(),
        optimizer.max_gn,
        experiment,
        first_step,
    )


def _non_finite(metrics: dict[str, Tensor]) -> dict[str, float]:
    """The numbers that are not finite on this rank; it may be another rank's that are not."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if not math.isfinite(value)}


def accumulate(sums: dict[str, Tensor], terms: dict[str, Tensor], count: int) -> None:
    """Adds `terms / count` to `sums`: means over micro-batches, without gradients."""
    for name, value in terms.items():
        share = value.detach() / count
        sums[name] = sums[name] + share if name in sums else share
