"""The training loop: it decides when things happen; a `Stage` decides what they are.

One loop serves both stages. It counts optimizer steps and images, seeds every step from (seed, rank, step), collects
the step's scalars on the device, and reads them back only at log boundaries, so that a step never waits for the host.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runtime import distributed
from runtime.preemption import Preempted
from runtime.runlog import RunLog
from runtime.seeding import seed_everything_for_step
from training.checkpoints.checkpoint_writer import CheckpointWriter
from training.checkpoints.snapshot_writer import SnapshotWriter
from training.experiment import BatchPlan, RunPosition
from training.loop.faults import NonFiniteStep
from training.loop.guards import Guards
from training.loop.in_loop_scores import InLoopScores
from training.loop.throughput import SpeedMeter
from training.stage import Batch, Stage
from training.vocabulary import folded


class StepMetrics:
    """Scalars of the steps since the last log line, kept on the device until they are drained."""

    def __init__(self) -> None:
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


def validate(stage: Stage, batches: Callable[[], Iterable[Batch]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metrics and pictures of a split, with the averaged weights where the run keeps them; every rank must call it."""
    with stage.averaged():
        return stage.evaluate(batches()), stage.pictures(batches())


@dataclass(frozen=True)
class Records:
    """What a run leaves behind.

    Args:
        log: where metrics and pictures go.
        checkpoints: to resume from.
        snapshots: to use.
        facts: what both say beside where the run stands.
        saved: called on every rank when both are written.
    """

    log: RunLog
    checkpoints: CheckpointWriter
    snapshots: SnapshotWriter
    facts: Mapping[str, Any] = field(default_factory=dict)
    saved: Callable[[], None] = lambda: None


class Loop:
    """Runs a stage from where it stands to `plan.total_steps`.

    Args:
        stage: the stage to train.
        feed: batches in training order, positioned at the image where the run stands; endless.
        plan: counts and frequencies.
        records: what the run leaves behind; the checkpoint writer is closed here.
        guards: what watches over the run; entered here.
        meter: how fast it goes.
        validation: opens this rank's share of the validation split.
        start: where the run stands.
        scores: rFID or FID while training, if any.
    """

    def __init__(
        self,
        stage: Stage,
        feed: Iterable[Batch],
        plan: BatchPlan,
        records: Records,
        *,
        guards: Guards,
        meter: SpeedMeter,
        validation: Callable[[], Iterable[Batch]],
        start: RunPosition,
        scores: InLoopScores | None = None,
    ) -> None:
        self.stage, self.plan, self.guards, self.meter, self.scores = stage, plan, guards, meter, scores
        self.log, self.checkpoints, self.snapshots = records.log, records.checkpoints, records.snapshots
        self.facts, self.saved = records.facts, records.saved
        self.batches, self.validation = iter(feed), validation
        self.step, self.images_seen = start.step, start.images_seen
        self.metrics = StepMetrics()
        self._bar = records.log.progress(plan.total_steps, self.step, plan.global_batch)
        self._window_start = time.perf_counter()
        self._waited = 0.0

    def run(self) -> None:
        """Trains to the end of the plan.

        Raises:
            Preempted: a rank was told to stop; everything is saved.
        """
        with self.guards, self.checkpoints, self._bar:
            while self.step < self.plan.total_steps:
                self._one_step()
                self.checkpoints.check()
                self._bar.update()
                self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        """Logs, validates, scores, saves and stops, each when it is time to."""
        plan, step = self.plan, self.step
        last = step == plan.total_steps
        stop = self.guards.must_stop(step)
        save = last or stop or step % plan.save_steps == 0 or self.guards.must_save(step)
        test = last or step % plan.test_steps == 0
        scores = self.scores if self.scores is not None and self.scores.due(step, last) else None
        # a line before every checkpoint makes the log of a resumed run that of an uninterrupted one
        if save or test or scores is not None or step % plan.log_steps == 0:
            self._log_window()
        measured = self._validate() if test else {}
        if scores is not None:
            measured = self._score(scores, measured)
        if save:
            self._save(measured)
        if stop and not last:
            self.checkpoints.wait()
            line = f"told to stop: step {step} is saved, --resume goes on from there"
            self.log.info(line)
            self.log.event("stop", line, step)
            raise Preempted

    def _one_step(self) -> None:
        self._seed()
        with self.meter.flops.counting() as metrics:
            metrics.update(self.stage.train_step(self._micro_batches(), self.step, self._keep_skipped))
        self.metrics.add(self.step, metrics)
        self.step += 1
        self.images_seen += self.plan.global_batch

    def _seed(self) -> None:
        """Run, rank and step determine every random draw of a step."""
        seed_everything_for_step(self.stage.config.seed, distributed.get_rank(), self.step)

    def _micro_batches(self) -> Iterator[Batch]:
        for _ in range(self.plan.accumulation):
            self.guards.watchdog.beat(self.step, "waiting for data")
            waiting = time.perf_counter()
            batch = next(self.batches)
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
        metrics = {**folded(means(window)), **self.stage.window_metrics()}
        self.guards.look_at(self.step, window, metrics)
        elapsed = time.perf_counter() - self._window_start
        timing = {
            "images_per_second": num_steps * self.plan.global_batch / elapsed,
            "data_wait_share": self._waited / elapsed,
            **self.meter.timing(num_steps, elapsed),
        }
        self.log.log_metrics(self.step, metrics, prefix="train", epoch=self.plan.epoch(self.step), timing=timing)
        self._restart_clock()

    def _first_image(self, step: int) -> int:
        """How many images the run had seen when `step` began."""
        return self.images_seen - (self.step - step) * self.plan.global_batch

    def _keep_skipped(self, step: int, terms: Mapping[str, float]) -> None:
        self.guards.record(step, self._first_image(step), terms)

    def _validate(self) -> dict[str, Any]:
        self.guards.watchdog.beat(self.step, "validation")
        self._seed()
        metrics, pictures = validate(self.stage, self.validation)
        self.log.log_metrics(self.step, metrics, prefix="val", epoch=self.plan.epoch(self.step))
        for name, grid in pictures.items():
            self.log.log_images(name, grid, self.step)
        self._restart_clock()
        return metrics

    def _score(self, measuring: InLoopScores, validation: dict[str, Any]) -> dict[str, Any]:
        """Logs the scores, keeps the best snapshot, and returns the scores beside the validation metrics."""
        self.guards.watchdog.beat(self.step, "scoring")
        self._seed()
        scores = measuring.measure()
        self.log.log_metrics(self.step, scores, prefix="score", epoch=self.plan.epoch(self.step))
        measuring.keep_best(self._progress(), scores, validation)
        self._restart_clock()
        return {**validation, **scores}

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "epoch": self.plan.epoch(self.step),
            "global_batch": self.plan.global_batch,
            "schedule_ranks": self.plan.schedule_ranks,
            "flops_per_step": self.meter.flops.state_dict(),
            **self.stage.provenance(),
            **self.facts,
        }

    def _save(self, validation: dict[str, Any]) -> None:
        self.guards.watchdog.beat(self.step, "checkpoint")
        progress, weights = self._progress(), self.stage.snapshot()
        self.snapshots.check(weights, self.step)
        self.checkpoints.save(self.step, self.stage.objects(), progress)
        self.snapshots.save(weights, progress, validation)
        self.guards.saved()
        self.saved()
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._window_start, self._waited = time.perf_counter(), 0.0
        self._bar.skip_time()
