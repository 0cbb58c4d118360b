"""Trains both stages for hours, as small as they get, and shows whether anything grows that should not.

    python -m tests.faults.soak --minutes 120 [--summary FILE] [--folder DIR]

Stage 1 runs on two ranks and stage 2 on one, each with a data worker, on digits that are decoded from PNG files. A
checkpoint is written every few seconds, a validation and a score (rFID, FID of samples) follow every few. A step waits
a little, so that all of it takes a part of one core. Every few seconds the memory of each run is noted (without pages
of files, of which other programs have a share; those that forked workers share count once), its descriptors, threads
and processes, and the files of its run directory, its temporary folder and its shared memory. `metrics.jsonl`,
`train.log`, what is printed, TensorBoard's events and the pictures under `samples/`, which grow by design, are left
out.

The first tenth is left out as well. What remains is cut into equal stretches of time, whose medians take away what goes
up and down within one; a straight line through them gives the growth per hour. The intervals hold all together with
95 %. A series grows when its whole interval lies above 0. SIGINT or SIGTERM end the soak early, with the summary of
what it saw. The last line is the summary as JSON. `--samples FILE` makes it again of the notes of an earlier soak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from runtime.preemption import PREEMPTED_EXIT_CODE
from tests.faults.kill_runs import write_digits
from tests.ranks import children_of, free_port, launcher_variables
from tests.training.tiny_runs import launch_in_process, only_run, stage1, stage2, write_config
from training.launch import launch
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

PAUSE_SECONDS = 0.3  # of every step
STRETCHES = 20
SAVE_STEPS, TEST_STEPS, SCORE_STEPS = 16, 48, 96
GROWING_BY_DESIGN = ("metrics.jsonl", "events.jsonl", "train.log", "tensorboard", "samples", "printed.")
UNITS = {"memory": "MiB", "disk": "MiB"}


class SlowStage1(Stage1):
    """Stage 1 whose steps take a while without computing."""

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(PAUSE_SECONDS)
        return super().train_step(*args, **kwargs)


class SlowStage2(Stage2):
    """The same of stage 2."""

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(PAUSE_SECONDS)
        return super().train_step(*args, **kwargs)


STAGES: dict[str, Any] = {"stage1": (Stage1Config, SlowStage1), "stage2": (Stage2Config, SlowStage2)}


@dataclass
class Run:
    """One training run: its processes and the folder with everything it writes."""

    name: str
    folder: Path
    processes: list[Any] = field(default_factory=list)

    def start(self, ranks: int, *flags: object) -> None:
        (self.folder / "tmp").mkdir(parents=True)
        port = free_port()
        for rank in range(ranks):
            words = [str(flag) for flag in (*flags, "-r", self.folder / "results")]
            process = multiprocessing.get_context("spawn").Process(
                target=run_rank, args=(self.name, words, self.folder, port, rank, ranks)
            )
            process.start()
            self.processes.append(process)

    def step(self) -> int:
        """The last one in the metrics; -1 before there is one."""
        for file in self.folder.glob("results/*/*/metrics.jsonl"):
            with open(file, "rb") as lines:
                lines.seek(max(0, file.stat().st_size - 20_000))
                whole = lines.read().split(b"\n")[1:-1]
            return json.loads(whole[-1])["step"] if whole else -1
        return -1

    def failed(self) -> str | None:
        """What ended a rank by itself."""
        for rank, process in enumerate(self.processes):
            if process.exitcode is not None:
                printed = (self.folder / f"printed.rank{rank}").read_text()
                return f"{self.name}, rank {rank} ended with {process.exitcode}: {printed[-1000:]}"
        return None

    def stop(self) -> list[int]:
        """Tells the ranks to stop, waits, and returns their exit codes."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(300)
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def _grows_by_design(self, file: Path) -> bool:
        return any(part.startswith(GROWING_BY_DESIGN) for part in file.relative_to(self.folder).parts)

    def measure(self) -> dict[str, float]:
        """Every series of this run, now."""
        pids = [process.pid for process in self.processes]
        pids += [child for pid in pids for child in children_of(pid)]
        names = [name.split("_") for name in os.listdir("/dev/shm") if name.startswith("torch_")]
        walked = os.walk(self.folder)  # which passes over what is renamed in the meantime
        found = [Path(folder, name) for folder, _, names in walked for name in names]
        files = [file for file in found if not self._grows_by_design(file)]
        return {
            "memory": sum(map(memory_of, pids)) / 2**20,
            "memory of rank 0": memory_of(pids[0]) / 2**20,
            "descriptors": sum(len(entries(f"/proc/{pid}/fd")) for pid in pids),
            "threads": sum(len(entries(f"/proc/{pid}/task")) for pid in pids),
            "processes": len(pids),
            "shared memory files": sum(name[1] in map(str, pids) for name in names),
            "temporary files": sum(self.folder / "tmp" in file.parents or ".partial" in str(file) for file in files),
            "files": len(files),
            "disk": sum(map(size_of, files)) / 2**20,
        }


def run_rank(name: str, flags: list[str], folder: Path, port: int, rank: int, ranks: int) -> None:
    """One rank: what the entry script does, with its own temporary folder."""
    os.environ.update(launcher_variables(rank, ranks) if ranks > 1 else {})
    os.environ.update(MASTER_PORT=str(port), TMPDIR=str(folder / "tmp"), CUDA_VISIBLE_DEVICES="")
    tempfile.tempdir = None
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own; this one was spawned
    torch.set_num_threads(1)
    with open(folder / f"printed.rank{rank}", "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    from tests.training.tiny_runs import parse

    sys.argv = [f"main_{name}.py", *flags]
    launch(*STAGES[name], parse(name, *flags))


def memory_of(pid: int) -> int:
    """Bytes of a process, a page that n processes share as one n-th of it; 0 of one that has ended."""
    with suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        return sum(int(line[1]) * 1024 for line in lines if line[0] in ("Pss_Anon:", "Pss_Shmem:"))
    return 0


def entries(folder: str) -> list[str]:
    """What is in a folder of /proc; nothing when the process has ended."""
    with suppress(OSError):
        return os.listdir(folder)
    return []


def size_of(file: Path) -> int:
    """Bytes of a file; 0 of one that has been removed."""
    with suppress(OSError):
        return file.stat().st_size
    return 0


def growth(
    hours: Sequence[float], values: Sequence[float], wrong: float = 0.05, stretches: int = STRETCHES
) -> dict[str, float]:
    """Growth per hour of a series and an interval that is wrong with that probability, from stretches of equal time.

    Raises:
        ValueError: fewer than three stretches have a value.
    """
    time_N, value_N = np.asarray(hours), np.asarray(values, dtype=float)
    edges = np.linspace(time_N[0], time_N[-1], stretches + 1)[1:-1]
    stretch_N = np.searchsorted(edges, time_N, side="right")
    present = np.unique(stretch_N)
    if len(present) < 3:
        raise ValueError(f"{len(present)} of {stretches} stretches have a value: too few for a line")
    place_S = np.array([time_N[stretch_N == number].mean() for number in present])
    level_S = np.array([np.median(value_N[stretch_N == number]) for number in present])
    line = stats.linregress(place_S, level_S)
    half = 0.0 if np.ptp(level_S) == 0 else stats.t.ppf(1 - wrong / 2, len(present) - 2) * line.stderr
    return {
        "mean": float(value_N.mean()),
        "first": float(level_S[0]),
        "last": float(level_S[-1]),
        "per_hour": float(line.slope),
        "low": float(line.slope - half),
        "high": float(line.slope + half),
    }


def grows(line: dict[str, float]) -> bool:
    """Whether all of the interval lies above 0."""
    return line["low"] > 1e-9


def start_runs(folder: Path) -> list[Run]:
    """Both stages; a short stage 1 gives the second its tokenizer."""
    write_digits(folder / "digits", {"train": 256, "val": 64})
    dataset = {"type": "folder", "root": str(folder / "digits"), "resolution": 8, "hflip": True}
    short = {"dataset": dataset, "experiment.max_steps": 20}
    first = folder / "tokenizer"
    launch_in_process("stage1", "-m", write_config(folder / "short.yaml", stage1(short)), "-r", first)
    plan = {
        "dataset": dataset,
        "arch.ema": 0.9,
        "experiment.max_steps": 10_000_000,
        "experiment.save_steps": SAVE_STEPS,
        "experiment.test_steps": TEST_STEPS,
        "experiment.log_steps": 8,
        "experiment.num_workers": 1,
        "experiment.test_images": 16,
        "experiment.keep_snapshots": 2,
        "experiment.score": {
            "every_steps": SCORE_STEPS,
            "num_images": 32,
            "features": "classifier",
            "features_cache": str(folder / "classifiers"),
        },
    }
    runs = [Run("stage1", folder / "stage1"), Run("stage2", folder / "stage2")]
    runs[0].start(2, "-m", write_config(folder / "stage1.yaml", stage1(plan)))
    second = stage2(plan | {"arch.vocab_size_cond": 10})
    runs[1].start(1, "-m", write_config(folder / "stage2.yaml", second), "-v", only_run(first))
    return runs


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM."""
    event = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in numbers]
    try:
        yield event
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def watch(runs: Sequence[Run], minutes: float, stop: threading.Event, notes: Path) -> list[dict[str, float]]:
    """What is measured until the time is over, the soak is told to stop, or a run fails (RuntimeError)."""
    # until the first of every kind is behind them
    while min(run.step() for run in runs) < SCORE_STEPS and not stop.wait(0.2):
        _check(runs)
    begin, every = time.monotonic(), min(5.0, minutes * 60 / 120)
    samples: list[dict[str, float]] = []
    while time.monotonic() < begin + minutes * 60 and not stop.wait(every):
        _check(runs)
        sample: dict[str, float] = {"hours": (time.monotonic() - begin) / 3600}
        for run in runs:
            sample |= {f"{run.name} {name}": value for name, value in run.measure().items()}
            sample[f"{run.name} step"] = run.step()
        samples.append(sample)
        with open(notes, "a") as file:
            file.write(json.dumps(sample) + "\n")
    return samples


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if (reason := run.failed()) is not None:
            raise RuntimeError(reason)


def summary(samples: list[dict[str, float]], asked_minutes: float) -> dict[str, Any]:
    """What the samples say: every series with its growth, and those that grow."""
    noted_names = {name: None for sample in samples for name in sample}  # once, in their order
    steps = [name for name in noted_names if name.endswith(" step")]
    names = [name for name in noted_names if name not in ("hours", *steps)]
    lines = {}
    for name in names:
        noted = [sample for sample in samples if name in sample]
        kept = noted[len(noted) // 10 :]
        hours = [sample["hours"] for sample in kept]
        lines[name] = growth(hours, [sample[name] for sample in kept], 0.05 / len(names))
        lines[name]["minutes"] = (hours[-1] - hours[0]) * 60
    done = {}
    for name in steps:
        counts = [sample[name] for sample in samples if name in sample]
        done[name.removesuffix(" step")] = int(counts[-1] - counts[0])
    return {
        "minutes": round(samples[-1]["hours"] * 60, 1),
        "asked_minutes": asked_minutes,
        "samples": len(samples),
        "steps": done,
        "checkpoints": {name: count // SAVE_STEPS for name, count in done.items()},
        "growing": [name for name, line in lines.items() if grows(line)],
        "series": {name: {key: float(f"{value:.6g}") for key, value in line.items()} for name, line in lines.items()},
        "torch": torch.__version__,
    }


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """Starts the runs in an empty folder, watches them, stops them; the summary."""
    with told_to_stop() as stop:
        runs = start_runs(folder)
        try:
            samples = watch(runs, minutes, stop, folder / "samples.jsonl")
        finally:
            codes = {run.name: run.stop() for run in runs}
    if len(samples) < STRETCHES:
        raise SystemExit(f"told to stop after {len(samples)} samples: too few to say anything")
    return {**summary(samples, minutes), "exit_codes": codes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--summary", type=Path, help="write the JSON line there as well")
    parser.add_argument("--folder", type=Path, help="an empty folder for the runs, which is kept")
    parser.add_argument("--samples", type=Path, help="the samples.jsonl of an earlier soak: only the summary is made")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.samples is not None:
        noted = [json.loads(line) for line in args.samples.read_text().splitlines()]
        result = {**summary(noted, args.minutes), "exit_codes": {}}
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result = soak(folder.resolve(), args.minutes)
    for name, line in result["series"].items():
        unit = UNITS.get(name.split()[1], "")
        mark = "GROWS" if name in result["growing"] else "flat"
        print(f"{name:32s} {line['mean']:10.2f} {unit:4s} {line['low']:+9.3f} .. {line['high']:+9.3f} per hour  {mark}")
    line = json.dumps(result)
    if args.summary is not None:
        args.summary.write_text(line + "\n")
    print(line)
    ended = {code for codes in result["exit_codes"].values() for code in codes}
    if result["growing"] or not ended <= {PREEMPTED_EXIT_CODE}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
