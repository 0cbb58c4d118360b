"""Kills runs of two ranks at random moments and shows that every one of them ends like a run that nobody touched.

    python -m tests.faults.kill_runs --kills 20 --seed 0 [--jobs 2] [--summary FILE]

Stage 1 is trained on scikit-learn's digits, written as PNG files so that data workers decode them. One run goes
through untouched. Every other one loses, by `kill -9`, rank 0, rank 1 or a data worker, after a random step and a
random part of the next; every third while a checkpoint is being written. A run that lost a rank is resumed with
`--resume`; one that lost a data worker has to go on by itself. The ends are compared bit for bit: weights, codebooks,
averages, optimizer, progress and the lines of `metrics.jsonl` but for their times. The last line is the summary as
JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.ranks import children_of, free_port, launcher_variables
from tests.training.checkpoint_files import load_checkpoint
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    metrics_without_time,
    only_run,
    stage1,
    write_config,
)
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.launch import LaunchSettings, launch, training_parser
from training.stages.stage1 import Stage1, Stage1Config

STEPS, SAVE_STEPS = 24, 3
RANKS = 2
LIMIT_SECONDS = 600.0
VICTIMS = ("rank 0", "rank 1", "worker")
PARTS = {"weights": "model/", "codebook": "model/quantizer", "average": "ema/", "optimizer": "update/"}


@dataclass
class Kill:
    """What was done to one run, and how it ended. `step` is the last one it had logged."""

    victim: str
    step: int
    while_saving: bool
    resumed_from: int | None
    identical: dict[str, bool]


def write_digits(root: Path, per_split: dict[str, int]) -> None:
    """Some of scikit-learn's digits as a folder data set of 8x8 PNG files."""
    images_NHW, labels_N = (load_digits()[key] for key in ("images", "target"))
    first = 0
    for split, count in per_split.items():
        for index in range(first, first + count):
            path = root / split / str(labels_N[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((images_NHW[index] * 15.9).astype(np.uint8)).convert("RGB").save(path)
        first += count


def config_at(folder: Path) -> Path:
    """The run: checkpoints every `SAVE_STEPS`, written in the background; data workers, accumulation, averages."""
    write_digits(folder / "digits", {"train": 96, "val": 8})
    return write_config(
        folder / "digits.yaml",
        stage1(
            {
                "dataset": {"type": "folder", "root": str(folder / "digits"), "resolution": 8, "hflip": True},
                "arch.ema": 0.9,
                "experiment.max_steps": STEPS,
                "experiment.save_steps": SAVE_STEPS,
                "experiment.test_steps": STEPS,
                "experiment.num_workers": 1,
                "experiment.total_batch_size": 16,
            }
        ),
    )


class Ranks:
    """The processes of one run: `main_stage1.py` with these flags, forked from a server that has imported everything.

    There is no launcher, so that nothing but the run itself reacts to a kill.
    """

    def __init__(self, printed: Path, *flags: Any) -> None:
        port = free_port()
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["tests.training.tiny_runs", "torch.utils.tensorboard"])
        self.printed = [Path(f"{printed}.rank{rank}") for rank in range(RANKS)]
        self.processes = [
            server.Process(target=run_rank, args=([str(flag) for flag in flags], port, rank, str(self.printed[rank])))
            for rank in range(RANKS)
        ]
        for process in self.processes:
            process.start()
        self._deadline = time.monotonic() + LIMIT_SECONDS

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once it gives something; None when a process ended first."""
        while not (found := condition()):
            if any(process.exitcode is not None for process in self.processes):
                return None
            assert time.monotonic() < self._deadline, "the run stands still"
            time.sleep(0.005)
        return found

    def workers(self) -> list[int]:
        """Data workers of all ranks: the children that are copies of them."""
        return [
            child
            for process in self.processes
            for child in children_of(process.pid)
            if _command(child) == _command(process.pid)
        ]

    def finish(self) -> list[tuple[int, str]]:
        """Exit code and stderr of every rank."""
        for process in self.processes:
            process.join(LIMIT_SECONDS)
            assert process.exitcode is not None, "the run stands still"
        return [(process.exitcode, _read(file)) for process, file in zip(self.processes, self.printed)]


def run_rank(flags: list[str], port: int, rank: int, printed: str) -> None:
    """One rank: what `main_stage1.py` does."""
    os.environ.update(launcher_variables(rank, RANKS), MASTER_PORT=str(port))
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own; the server's is inherited here
    torch.set_num_threads(1)
    with open(printed, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["main_stage1.py", *flags]
    launch(Stage1Config, Stage1, LaunchSettings.from_flags(training_parser("").parse_args(flags)))


def _command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it has ended in the meantime
        return ""


def logged_step(results: Path) -> int:
    """The last step in the metrics of the only run there; -1 before there is one."""
    lines = [line for file in results.glob("*/*/metrics.jsonl") for line in file.read_text().split("\n")[:-1]]
    return json.loads(lines[-1])["step"] if lines else -1


def is_saving(results: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(results.glob("*/*/checkpoints/.partial-*"))


def kill_once(results: Path, config: Path, victim: str, moment: random.Random, aim_at_saving: bool) -> Kill:
    """Starts a run, kills the victim, and brings the run to its end; the comparison is left to the caller."""
    ranks = Ranks(results.with_suffix(".first"), "-m", config, "-r", results)
    target = moment.randrange(0, STEPS - 2)
    ranks.wait_until(lambda: logged_step(results) >= target)
    if aim_at_saving:
        ranks.wait_until(lambda: is_saving(results))
    else:
        time.sleep(moment.uniform(0.0, 0.3))
    step, saving = logged_step(results), is_saving(results)
    pids = ranks.workers() if victim == "worker" else []
    if not pids:  # the run is past its last batch, or a rank was meant from the start
        victim = "rank 0" if victim == "worker" else victim
        pids = [ranks.processes[int(victim[-1])].pid]
    with suppress(ProcessLookupError):  # it was faster
        os.kill(moment.choice(pids), signal.SIGKILL)
    ends = ranks.finish()
    if victim == "worker":
        assert [code for code, _ in ends] == [0, 0], ends
        return Kill(victim, step, saving, None, {})
    survivor = ends[1 - int(victim[-1])]
    # 0: it had nothing more to do with the other
    assert "Traceback" not in survivor[1], survivor
    found = [entry for run in results.glob("*/*") for entry in complete_checkpoints(run)]
    if found:
        again = Ranks(results.with_suffix(".again"), "-m", config, "-r", results, "--resume")
    else:
        results = results / "again"  # nothing was saved yet: the only run that starts anew
        again = Ranks(results.with_suffix(".new"), "-m", config, "-r", results)
    ends = again.finish()
    assert [code for code, _ in ends] == [0, 0], ends
    resumed = [line for line in ends[0][1].splitlines() if " resumed from " in line]
    return Kill(victim, step, saving, int(resumed[0].split(" at step ")[1].split(",")[0]) if resumed else 0, {})


def compare(straight: Path, other: Path, steps: int = STEPS) -> dict[str, bool]:
    """Which parts of the two ends are equal, bit for bit."""
    left, right = (run / f"checkpoints/step_{steps:08d}" for run in (straight, other))
    tensors = checkpoint_tensors(left)
    names = differing(tensors, checkpoint_tensors(right))
    equal = {part: not any(name.startswith(prefix) for name in names) for part, prefix in PARTS.items()}
    assert all(any(name.startswith(prefix) for name in tensors) for prefix in PARTS.values())
    equal["everything else"] = not [name for name in names if not name.startswith(tuple(PARTS.values()))]
    equal["progress"] = load_checkpoint(left)["meta"] == load_checkpoint(right)["meta"]
    equal["metrics"] = metrics_without_time(straight) == metrics_without_time(other)
    return equal


def kill_runs(folder: Path, kills: int, seed: int, jobs: int = 1) -> list[Kill]:
    """One untouched run and `kills` others, `jobs` at a time, compared with it."""
    config = config_at(folder)
    ends = Ranks(folder / "printed", "-m", config, "-r", folder / "straight").finish()
    assert [code for code, _ in ends] == [0, 0], ends
    straight = only_run(folder / "straight")

    def one(number: int) -> Kill:
        moment, results = random.Random(f"{seed} {number}"), folder / f"killed{number:02d}"
        kill = kill_once(results, config, moment.choice(VICTIMS), moment, aim_at_saving=number % 3 == 2)
        kill.identical = compare(straight, only_run(results / "again" if (results / "again").exists() else results))
        print(describe(number, kill), flush=True)
        return kill

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(kills)))


def describe(number: int, kill: Kill) -> str:
    """One line of the report."""
    then = "went on by itself" if kill.resumed_from is None else f"resumed from step {kill.resumed_from}"
    wrong = [part for part, equal in kill.identical.items() if not equal]
    return (
        f"{number + 1:3d}  {kill.victim:7s} killed after step {kill.step:3d}"
        f"{' while a checkpoint was written' if kill.while_saving else '':31s}  {then:22s}  "
        f"{'identical' if not wrong else 'DIFFERS in ' + ', '.join(wrong)}"
    )


def summary(kills: list[Kill]) -> dict[str, Any]:
    """The last line: counts, and every kill."""
    return {
        "kills": len(kills),
        "identical": sum(all(kill.identical.values()) for kill in kills),
        "while_saving": sum(kill.while_saving for kill in kills),
        "by_victim": {victim: sum(kill.victim == victim for kill in kills) for victim in VICTIMS},
        "ranks": RANKS,
        "steps": STEPS,
        "save_steps": SAVE_STEPS,
        "torch": torch.__version__,
        "runs": [asdict(kill) for kill in kills],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--summary", type=Path, help="write the JSON line there as well")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit for bit is promised on the CPU
    with tempfile.TemporaryDirectory() as folder:
        result = summary(kill_runs(Path(folder), args.kills, args.seed, args.jobs))
    line = json.dumps({**result, "seed": args.seed})
    if args.summary is not None:
        args.summary.write_text(line + "\n")
    print(line)
    if result["identical"] != result["kills"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
