"""What a run does when its numbers go wrong: non-finite steps kept for replay, loss spikes and collapse reported.

Everything here works on numbers that the host has anyway, at log boundaries; no step waits for the device.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime import distributed
from runtime.atomic import write_text_atomically
from runtime.errors import UserError, one_line
from runtime.seeding import derive_seed
from training.loop.feed import Feed
from training.stage import Batch

FAULTS = "faults"
FAULT_FILE = "fault.json"
MAX_KEPT = 10
WATCHED_LOSSES = ("loss_total", "loss")  # what stage 1 and stage 2 minimise
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class NonFiniteStep(UserError):
    """A loss or gradient was not finite. `step` is the first such step, `terms` its non-finite terms by name."""

    def __init__(self, message: str, step: int, terms: Mapping[str, float]) -> None:
        super().__init__(message)
        self.step, self.terms = step, dict(terms)


class FaultRecorder:
    """Writes `<run>/faults/step_XXXXXXXX/`: what is needed to take a non-finite step again.

    `rank<r>.safetensors` holds the micro-batches of rank r (`<m>/image`, `<m>/label`, ...) and the state of torch's
    generator as the step began (`rng_state`); `fault.json` says step, terms, seed and the positions of the images.
    Batches are made again from the order of the samples instead of being kept, so nothing is held on the device. At
    most `MAX_KEPT` steps of a run are written.

    Args:
        run_dir: the run directory.
        feed: makes the batches again.
        seed: the run's seed.
        global_batch: images of one step.
        warn: told when a fault cannot be written.
    """

    def __init__(self, run_dir: Path, feed: Feed, seed: int, global_batch: int, warn: Callable[[str], None]) -> None:
        self.directory, self.feed, self.warn = run_dir / FAULTS, feed, warn
        self.seed, self.global_batch = seed, global_batch

    def record(self, step: int, first_image: int, terms: Mapping[str, Any], policy: str) -> Path | None:
        """Writes the fault of a step that began after `first_image` images; every rank must call it.

        Returns:
            The directory; None when there are enough already, or when it could not be written (a warning says why).
        """
        folder = self.directory / f"step_{step:08d}"
        if distributed.run_on_main(lambda: self._is_full(folder)):
            return None
        # a number may be non-finite on one rank alone
        terms = {
            name: value
            for part in distributed.gather_objects({name: str(value) for name, value in terms.items()})
            for name, value in part.items()
        }
        failures = distributed.gather_objects(self._write_rank(folder, step, first_image))
        for failure in filter(None, failures):
            self.warn(f"the fault of step {step} is not kept: {failure}")
            return None
        distributed.run_on_main(lambda: self._describe(folder, step, first_image, terms, policy))
        return folder

    def _write_rank(self, folder: Path, step: int, first_image: int) -> str | None:
        """Writes this rank's file; what went wrong, if anything did: a run goes on without it."""
        rank = distributed.get_rank()
        file = folder / f"rank{rank}.safetensors"
        try:
            tensors = {
                f"{number}/{name}": value.detach().cpu().contiguous()
                for number, batch in enumerate(self.feed.step_again(first_image))
                for name, value in batch.items()
            }
            tensors["rng_state"] = generator_at(self.seed, rank, step).get_state()
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, file)
        except (OSError, ValueError, SafetensorError) as error:
            with suppress(OSError):  # a torn one
                file.unlink()
            return f"{file}: {one_line(error)}"
        return None

    def _is_full(self, folder: Path) -> bool:
        kept = list(self.directory.glob(f"step_*/{FAULT_FILE}"))
        return len(kept) >= MAX_KEPT and not (folder / FAULT_FILE).exists()

    def _describe(self, folder: Path, step: int, first_image: int, terms: Mapping[str, Any], policy: str) -> None:
        world_size = distributed.get_world_size()
        content = {
            "step": step,
            "terms": dict(terms),
            "policy": policy,
            "seed": self.seed,
            "rank_seeds": [step_seed(self.seed, rank, step) for rank in range(world_size)],
            "first_position": first_image,
            "last_position": first_image + self.global_batch - 1,
            "world_size": world_size,
        }
        write_text_atomically(folder / FAULT_FILE, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Fault:
    """A recorded fault: `about` is its `fault.json`, `batches` the micro-batches of one rank."""

    about: dict[str, Any]
    batches: list[Batch]
    rng_state: Tensor


def load_fault(folder: str | Path, rank: int = 0) -> Fault:
    """Reads what `FaultRecorder` wrote, to take the step again: `seed_everything_for_step(seed, rank, step)` of
    `fault.json` (or `torch.set_rng_state(rng_state)`), then the stage's `train_step(batches, step)`.
    """
    folder = Path(folder)
    about = json.loads((folder / FAULT_FILE).read_text(encoding="utf-8"))
    tensors = load_file(folder / f"rank{rank}.safetensors")
    rng_state = tensors.pop("rng_state")
    batches: list[Batch] = [{} for _ in {name.split("/")[0] for name in tensors}]
    for name, value in tensors.items():
        number, _, key = name.partition("/")
        batches[int(number)][key] = value
    return Fault(about, batches, rng_state)


def step_seed(seed: int, rank: int, step: int) -> int:
    """What `seed_everything_for_step` gives torch."""
    return derive_seed("step", seed, rank, step)


def generator_at(seed: int, rank: int, step: int) -> torch.Generator:
    """A generator in the state in which the step finds torch's own on the CPU."""
    return torch.Generator().manual_seed(step_seed(seed, rank, step))


class SpikeAlarm:
    """Reports steps whose loss lies far above the recent ones.

    The bound is median + `factor` times the deviation (1.4826 times the median absolute deviation, at least 1 % of the
    median) of the last `window` steps, spikes included: a single one moves neither. Nothing is reported before a
    quarter of the window is filled.

    Args:
        factor: None reports nothing.
        window: steps that are remembered.
        warn: told about the highest spike of every log window.
    """

    def __init__(self, factor: float | None, window: int, warn: Callable[[str], None]) -> None:
        self.factor, self.warn = factor, warn
        self._recent: dict[str, deque[float]] = {}
        self._window = window

    def look_at(self, values: Sequence[tuple[int, str, float]]) -> None:
        """Takes the (step, name, value) of a log window, in order."""
        if self.factor is None:
            return
        watched = [item for item in values if item[1] in WATCHED_LOSSES]
        worst: tuple[float, str] | None = None
        for step, name, value in watched:
            recent = self._recent.setdefault(name, deque(maxlen=self._window))
            if len(recent) >= max(8, self._window // 4):
                median, deviation = _robust(recent)
                excess = (value - median) / deviation
                if excess > self.factor and (worst is None or excess > worst[0]):
                    worst = (
                        excess,
                        (
                            f"loss spike: {name} is {value:.4g} at step {step}, {excess:.0f} deviations above "
                            f"{median:.4g}, the median of the last {len(recent)} steps"
                        ),
                    )
            recent.append(value)
        if worst is not None:
            self.warn(worst[1])


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """Median and deviation; see `SpikeAlarm`."""
    median = statistics.median(values)
    spread = _MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in values)
    return median, max(spread, 0.01 * abs(median), 1e-12)


class CollapseAlarm:
    """Reports depths at which a window of steps used less than `min_usage` of the codebook; once until it recovers.

    Args:
        min_usage: share of the codes, 0 to 1; 0 reports nothing.
        warn: told about them.
    """

    def __init__(self, min_usage: float, warn: Callable[[str], None]) -> None:
        self.min_usage, self.warn = min_usage, warn
        self._collapsed: set[int] = set()

    def look_at(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a log window; those without code usage say nothing."""
        usage = metrics.get("used_fraction_by_depth", [])
        low = {depth for depth, share in enumerate(usage) if share < self.min_usage}
        if new := sorted(low - self._collapsed):
            shares = ", ".join(f"{usage[depth]:.2%} at depth {depth}" for depth in new)
            self.warn(
                f"codebook collapse: of the codes only {shares} were used before step {step} "
                f"(experiment.min_code_usage={self.min_usage:g})"
            )
        self._collapsed = low
