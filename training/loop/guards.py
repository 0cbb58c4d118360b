"""What watches over a training run: stop signals, the launcher, the watchdog, alarms and fault records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from runtime.distributed import HostAgreement
from runtime.preemption import StopSignals
from runtime.processes.launcher_watch import LauncherWatch
from runtime.runlog import RunLog
from runtime.watchdog import Watchdog
from training.experiment import BatchPlan, ExperimentConfig
from training.loop.faults import CollapseAlarm, FaultRecorder, SpikeAlarm


class Guards:
    """All of them for one run; entered while the loop runs.

    Args:
        config: the experiment section, which sets every limit.
        plan: counts of the run.
        log: gets warnings and alarms.
        recorder: keeps steps that are not finite.
        launcher: the process that started this one, if it is to be watched.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: BatchPlan,
        log: RunLog,
        recorder: FaultRecorder,
        launcher: int | None = None,
    ) -> None:
        self.log, self.policy, self.recorder = log, config.non_finite, recorder
        self.world_size, self.signal_steps = plan.world_size, config.signal_steps
        self.signals, self.agreement = StopSignals(), HostAgreement()
        self.watchdog = Watchdog(config.hang_timeout, log.warning)
        self.launcher = LauncherWatch(launcher, log.warning)
        self.spikes = SpikeAlarm(config.spike_factor, config.spike_window, partial(self._alarm, "spike"))
        self.collapse = CollapseAlarm(config.min_code_usage, partial(self._alarm, "collapse"))
        self._entered = ExitStack()
        self._save_minutes = config.save_minutes
        self._save_at = math.inf

    def __enter__(self) -> Guards:
        if self._save_minutes is not None:
            self._save_at = time.monotonic() + 60 * self._save_minutes
        self._entered.enter_context(self.signals)
        self._entered.enter_context(self.launcher)
        self._entered.enter_context(self.watchdog)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def must_stop(self, step: int) -> bool:
        """Whether a rank was told to stop or has lost its launcher, the same answer on all of them. Ranks ask each
        other every `signal_steps` steps; a single process looks after every step.
        """
        if self.world_size > 1 and step % self.signal_steps:
            return False
        return self.agreement.any(self.signals.received is not None or self.launcher.is_gone)

    def must_save(self, step: int) -> bool:
        """Whether the run has gone on for long without a checkpoint of its own; asked and answered like `must_stop`."""
        if self._save_at == math.inf or (self.world_size > 1 and step % self.signal_steps):
            return False
        return self.agreement.any(time.monotonic() >= self._save_at)

    def saved(self) -> None:
        """Told that a checkpoint is written: the next ones come as often as the plan says."""
        self._save_at = math.inf

    def look_at(self, step: int, values: Sequence[tuple[int, str, float]], metrics: Mapping[str, Any]) -> None:
        """Raises the alarms of a log window: (step, name, value) of its steps, and its metrics."""
        self.spikes.look_at(values)
        self.collapse.look_at(step, metrics)

    def record(self, step: int, first_image: int, terms: Mapping[str, Any]) -> str:
        """Keeps a non-finite step for replay and warns; where it lies, in words."""
        folder = self.recorder.record(step, first_image, terms, self.policy)
        where = "its batch is not kept" if folder is None else f"its batch is kept in {folder}"
        if self.policy == "skip":
            named = ", ".join(f"{name} {value}" for name, value in terms.items())
            self._alarm("skipped step", f"step {step} was skipped: {named}; {where}")
        return where

    def _alarm(self, event: str, line: str) -> None:
        # what is looked at is equal on all ranks: one of them says it
        if self.log.is_main:
            self.log.warning(line, event)
