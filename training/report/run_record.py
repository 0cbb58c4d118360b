"""What a run directory says of its run, whichever release wrote it; parts that are not there are empty."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rqstack.archive import newest_snapshot
from rqstack.snapshots import METADATA_FILE
from runtime.errors import UserError, one_line
from runtime.processes.run_ownership import OWNER_FILE, read_owner
from runtime.progress import duration
from runtime.records.events_file import read_events
from runtime.records.metrics_file import METRICS_FILE
from runtime.step_directories import BEST, SNAPSHOTS, read_json
from training.launch_record import STARTS, read_launch
from training.vocabulary import read_run

Points = list[tuple[float, float]]
RECENT = 5  # intervals that "now" stands for


@dataclass(frozen=True)
class RunRecord:
    """One run, as its directory tells.

    Attributes:
        run_dir: the directory.
        name: what the page calls it.
    """

    run_dir: Path
    name: str

    @classmethod
    def open(cls, path: Path) -> RunRecord:
        """A run directory.

        Raises:
            UserError: it is none.
        """
        run_dir = path.expanduser().resolve()
        if not (run_dir / "config.yaml").is_file() or not (run_dir / METRICS_FILE).is_file():
            raise UserError(f"{path} is no run of a training script: it lacks config.yaml or {METRICS_FILE}")
        return cls(run_dir, f"{run_dir.parent.name}/{run_dir.name}")

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The metrics, under the names of today."""
        return read_run(self.run_dir)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened: kind, step, time, text."""
        return [event for event in read_events(self.run_dir) if {"kind", "step", "text"} <= event.keys()]

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.yaml`, nested.

        Raises:
            UserError: it is damaged.
        """
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(self.run_dir / "config.yaml"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{self.run_dir / 'config.yaml'}: {one_line(error)}") from error
        return content if isinstance(content, dict) else {}

    @cached_property
    def launch(self) -> dict[str, Any]:
        """`launch.json`."""
        return read_launch(self.run_dir)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Every start of the run; of a run of an earlier release the last one."""
        starts = self.launch.get(STARTS)
        return starts if isinstance(starts, list) else [self.launch] if self.launch else []

    @property
    def stage(self) -> str:
        """`stage1` or `stage2`."""
        return "stage2" if "vqvae" in self.config else "stage1"

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by its dotted key."""
        node: Any = self.config
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return default if node is None else node

    def curve(self, key: str) -> Points:
        """(step, number) of a metric; of a list the mean over depths."""
        points = []
        for line in self.lines:
            value = _looked_up(line, key)
            if isinstance(value, list) and value and all(number is not None for number in value):
                value = sum(value) / len(value)
            if isinstance(value, (int, float)):
                points.append((line["step"], float(value)))
        return points

    def curves_by_depth(self, key: str) -> dict[str, Points]:
        """The curve of every depth of a metric that has one number for each."""
        curves: dict[str, Points] = {}
        for line in self.lines:
            value = _looked_up(line, key)
            for depth, number in enumerate(value if isinstance(value, list) else (), start=1):
                if isinstance(number, (int, float)):
                    curves.setdefault(f"depth {depth}", []).append((line["step"], float(number)))
        return curves

    def last(self, key: str) -> Any:
        """The newest value of a metric; None where there is none."""
        return next((value for line in reversed(self.lines) if (value := _looked_up(line, key)) is not None), None)

    def now(self, key: str) -> float | None:
        """The mean over the last few intervals."""
        recent = [number for _, number in self.curve(key)[-RECENT:]]
        return sum(recent) / len(recent) if recent else None

    @cached_property
    def step(self) -> int:
        """Steps that are done, as far as the metrics say."""
        return max((line["step"] for line in self.lines), default=0)

    @cached_property
    def steps_per_epoch(self) -> float | None:
        """As the metrics say."""
        known = (line["step"] / line["epoch"] for line in reversed(self.lines) if line.get("epoch"))
        return next(known, None)

    @cached_property
    def total_steps(self) -> int | None:
        """Of the whole run; None where nothing says it."""
        if (steps := self.setting("experiment.max_steps")) is not None:
            return int(steps)
        epochs = self.setting("experiment.epochs")
        return None if epochs is None or not self.steps_per_epoch else math.ceil(epochs * round(self.steps_per_epoch))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Of the newest snapshot."""
        snapshot = newest_snapshot(self.run_dir)
        try:
            return read_json(snapshot / METADATA_FILE) if snapshot is not None else {}
        except (OSError, ValueError):
            return {}

    @cached_property
    def best(self) -> dict[str, Any]:
        """Metric, value and number of images of the best snapshot; empty without one."""
        try:
            reason = read_json(self.run_dir / SNAPSHOTS / BEST / METADATA_FILE).get(BEST)
        except (OSError, ValueError):
            return {}
        return reason if isinstance(reason, dict) else {}

    @cached_property
    def images_per_step(self) -> int:
        """The global batch."""
        batch = self.setting("experiment.total_batch_size") or self.metadata.get("global_batch")
        if batch is not None:
            return int(batch)
        ranks = int(self.launch.get("world_size", 1))
        return int(self.setting("experiment.batch_size", 1)) * ranks * int(self.setting("optimizer.grad_accm_steps", 1))

    @property
    def status(self) -> str:
        """done, running or stopped, in words."""
        if self.total_steps is not None and self.step >= self.total_steps:
            return "done"
        owner = read_owner(self.run_dir / OWNER_FILE)
        if owner is not None and (owner.is_alive if owner.is_on_this_host else self._fresh()):
            return "running"
        ends = [event for event in self.events if event["kind"] in ("stop", "error", "start", "resume", "done")]
        if ends and ends[-1]["kind"] == "error":
            return f"ended with an error: {ends[-1]['text']}"
        return "stopped"

    def _fresh(self) -> bool:
        return time.time() - (self.run_dir / OWNER_FILE).stat().st_mtime < 120

    @property
    def eta(self) -> str:
        """How long the rest takes at the present speed; empty where nothing is left or known."""
        speed = self.now("timing/images_per_second")
        if self.total_steps is None or not speed or self.step >= self.total_steps:
            return ""
        return duration((self.total_steps - self.step) * self.images_per_step / speed)

    def commands(self) -> list[str]:
        """What was typed, the oldest start first."""
        return [f"python {shlex.join(map(str, start.get('command') or ()))}" for start in self.starts]

    def pictures(self, most: int) -> dict[str, list[tuple[int, Path]]]:
        """Name -> (step, file) of `samples/`, spread over the run, the first and the newest among them."""
        found: dict[str, list[tuple[int, Path]]] = {}
        for file in sorted((self.run_dir / "samples").glob("*_*.png")):
            name, _, number = file.stem.rpartition("_")
            if number.isdecimal():
                found.setdefault(name, []).append((int(number), file))
        return {name: _spread(files, most) for name, files in found.items()}


def _looked_up(line: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition("/")
    if section == "timing":
        timing = line.get("timing")
        return timing.get(name) if isinstance(timing, Mapping) else None
    return line.get(key)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
