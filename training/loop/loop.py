"""The training loop: it decides when things happen; a `Stage` decides what they are.

One loop serves both stages. It counts optimizer steps and images, seeds every step from (seed, rank, step), collects
the step's scalars on the device, and reads them back only at log boundaries, so that a step never waits for the host.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime import distributed
from runtime.preemption import Preempted
from runtime.runlog import RunLog
from runtime.seeding import seed_everything_for_step
from runtime.step_directories import CHECKPOINTS
from training.checkpoints.checkpoint import CheckpointWriter
from training.experiment import BatchPlan
from training.loop.faults import NonFiniteStep
from training.loop.guards import Guards
from training.loop.in_loop_scores import InLoopScores
from training.optimization.update import ScaledUpdate


class Stage(Protocol):
    """What the loop needs of a stage."""

    def train_step(self, micro_batches: Iterable[dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        """One optimizer step over `plan.accumulation` micro-batches, read one at a time.

        Returns named scalars that still live on the device.
        """

    def window_metrics(self) -> dict[str, Any]:
        """Statistics gathered since the last call: numbers, or lists with one per depth; equal on every rank."""

    def validate(self) -> dict[str, Any]:
        """Metrics of the validation split, equal on every rank."""

    def pictures(self) -> dict[str, Tensor]:
        """Named image grids, uint8 (C, H, W), made on the main process; empty on the others."""

    def objects(self) -> dict[str, Any]:
        """Named stateful objects: everything a checkpoint holds."""

    def provenance(self) -> dict[str, Any]:
        """What identifies the run's data and inputs; a resumed run must have the same."""

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Raw and EMA weights in the form that users load, on the main process; every rank must call it."""


class StepMetrics:
    """Scalars of the steps since the last log line, kept on the device until they are drained."""

    def __init__(self):
        self._labels: list[tuple[int, str]] = []
        self._rows: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Remembers one step. Steps may report different names (a discriminator that starts late), ranks may not."""
        self._labels += [(step, name) for name in metrics]
        self._rows.append(torch.stack([value.detach().float().reshape(()) for value in metrics.values()]))

    def drain(self, images_per_step: int) -> list[tuple[int, str, float]]:
        """(step, name, mean over all ranks) of everything in the window, after checking that every value is finite;
        empties the window.

        Raises:
            NonFiniteStep: naming the first non-finite term, its step and the positions of its images.
        """
        values = distributed.all_reduce_mean_(torch.cat(self._rows).double()).tolist()
        window = [(*label, value) for label, value in zip(self._labels, values, strict=True)]
        for step, name, value in window:
            if not math.isfinite(value):
                first = step * images_per_step
                bad = {other: number for at, other, number in window if at == step and not math.isfinite(number)}
                raise NonFiniteStep(
                    f"{name} is {value} at step {step} (images {first} to {first + images_per_step - 1} of the "
                    "training order); the last checkpoint is kept",
                    step,
                    bad,
                )
        self._labels, self._rows = [], []
        return window


def means(window: Iterable[tuple[int, str, float]]) -> dict[str, float]:
    """The mean of every name over the steps that report it."""
    values: dict[str, list[float]] = {}
    for _, name, value in window:
        values.setdefault(name, []).append(value)
    return {name: sum(group) / len(group) for name, group in values.items()}


class Loop:
    """Runs a stage from `start_step` to `plan.total_steps`.

    Args:
        stage: the stage to train.
        loader: batches in training order, positioned at the image where the run stands; endless.
        guards: what watches over the run; entered here.
        plan: counts and frequencies.
        log: where metrics and pictures go.
        run_dir: the run directory that receives the checkpoints.
        save_snapshot: writes a snapshot, given the progress and the validation metrics of this step (or none); called
            on every rank.
        seed: the run's seed; with rank and step it determines every random draw of a step.
        start_step, images_seen: where the run stands (both 0 for a new one).
        checkpoints: writes the run's checkpoints; closed here. Without one they go to the run directory at once.
        scores: rFID or FID while training, if any.
    """

    def __init__(
        self,
        stage: Stage,
        loader: Iterable[dict[str, Tensor]],
        plan: BatchPlan,
        log: RunLog,
        run_dir: Path,
        save_snapshot: Callable[[dict[str, Any], dict[str, Any]], None],
        *,
        guards: Guards,
        seed: int,
        start_step: int = 0,
        images_seen: int = 0,
        checkpoints: CheckpointWriter | None = None,
        scores: InLoopScores | None = None,
    ):
        self.stage, self.plan, self.log, self.run_dir = stage, plan, log, run_dir
        self.loader = iter(loader)
        self.save_snapshot = save_snapshot
        self.guards, self.seed = guards, seed
        self.step, self.images_seen = start_step, images_seen
        self.checkpoints = checkpoints or CheckpointWriter(run_dir / CHECKPOINTS, asynchronous=False)
        self.scores = scores
        self.metrics = StepMetrics()
        self._window_start = time.perf_counter()
        self._waited = 0.0
        for item in stage.objects().values():
            if isinstance(item, ScaledUpdate):
                item.on_skip = self._keep_skipped

    def run(self) -> None:
        """Trains to the end of the plan.

        Raises:
            Preempted: a rank was told to stop; everything is saved.
        """
        plan = self.plan
        bar = self.log.progress(plan.total_steps, self.step, plan.global_batch)
        with self.guards, self.checkpoints, bar as self._bar:
            while self.step < plan.total_steps:
                self._one_step()
                self.checkpoints.check()
                self._bar.update()
                last = self.step == plan.total_steps
                stop = self.guards.must_stop(self.step)
                save = last or stop or self.step % plan.save_steps == 0
                test = last or self.step % plan.test_steps == 0
                score = self.scores is not None and self.scores.due(self.step, last)
                # a line before every checkpoint makes the log of a resumed run that of an uninterrupted one
                if save or test or score or self.step % plan.log_steps == 0:
                    self._log_window()
                measured = self._validate() if test else {}
                if score:
                    measured = self._score(measured)
                if save:
                    self._save(measured)
                if stop and not last:
                    self.checkpoints.wait()
                    self.log.info(f"told to stop: step {self.step} is saved, --resume goes on from there")
                    raise Preempted

    def _one_step(self) -> None:
        seed_everything_for_step(self.seed, distributed.get_rank(), self.step)
        with self.guards.flops.counting() as metrics:
            metrics.update(self.stage.train_step(self._micro_batches(), self.step))
        self.metrics.add(self.step, metrics)
        self.step += 1
        self.images_seen += self.plan.global_batch

    def _micro_batches(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.plan.accumulation):
            self.guards.watchdog.beat(self.step, "waiting for data")
            waiting = time.perf_counter()
            batch = next(self.loader)
            self._waited += time.perf_counter() - waiting
            self.guards.watchdog.beat(self.step, "training step")
            yield batch

    def _log_window(self) -> None:
        self.guards.watchdog.beat(self.step, "log line")
        num_steps = len(self.metrics)
        try:
            window = self.metrics.drain(self.plan.global_batch)
        except NonFiniteStep as fault:
            where = self.guards.record(fault.step, self._first_image(fault.step), fault.terms)
            raise NonFiniteStep(f"{fault}; {where}", fault.step, fault.terms) from fault
        metrics = {**means(window), **self.stage.window_metrics()}
        self.guards.look_at(self.step, window, metrics)
        elapsed = time.perf_counter() - self._window_start
        timing = {
            "images_per_second": num_steps * self.plan.global_batch / elapsed,
            "data_wait_share": self._waited / elapsed,
            **self.guards.timing(num_steps / elapsed),
        }
        self.log.log_metrics(self.step, metrics, prefix="train", epoch=self.plan.epoch(self.step), timing=timing)
        self._restart_clock()

    def _first_image(self, step: int) -> int:
        """How many images the run had seen when `step` began."""
        return self.images_seen - (self.step - step) * self.plan.global_batch

    def _keep_skipped(self, step: int, terms: dict[str, float]) -> None:
        self.guards.record(step, self._first_image(step), terms)

    def _validate(self) -> dict[str, Any]:
        self.guards.watchdog.beat(self.step, "validation")
        seed_everything_for_step(self.seed, distributed.get_rank(), self.step)
        metrics = self.stage.validate()
        self.log.log_metrics(self.step, metrics, prefix="val", epoch=self.plan.epoch(self.step))
        for name, grid in self.stage.pictures().items():
            self.log.log_images(name, grid, self.step)
        self._restart_clock()
        return metrics

    def _score(self, validation: dict[str, Any]) -> dict[str, Any]:
        """Logs the scores, keeps the best snapshot, and returns the scores beside the validation metrics."""
        self.guards.watchdog.beat(self.step, "scoring")
        seed_everything_for_step(self.seed, distributed.get_rank(), self.step)
        scores = self.scores.measure()
        self.log.log_metrics(self.step, scores, prefix="score", epoch=self.plan.epoch(self.step))
        self.scores.keep_best(self._progress(), scores, validation)
        self._restart_clock()
        return {**validation, **scores}

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "epoch": self.plan.epoch(self.step),
            "global_batch": self.plan.global_batch,
            "schedule_ranks": self.plan.schedule_ranks,
            "flops_per_step": self.guards.flops.state_dict(),
            **self.stage.provenance(),
        }

    def _save(self, validation: dict[str, Any]) -> None:
        self.guards.watchdog.beat(self.step, "checkpoint")
        progress = self._progress()
        self.checkpoints.save(self.step, self.stage.objects(), progress)
        self.save_snapshot(progress, validation)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._window_start, self._waited = time.perf_counter(), 0.0
        self._bar.skip_time()
