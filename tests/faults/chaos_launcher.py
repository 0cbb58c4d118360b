"""A launcher for chaos runs: it does what torchrun does, but is forked from a server that has imported everything.

It starts the ranks, ends them all when one fails, and starts them again with the same flags, a number of times. Each
rank may be in a network of its own, and its disk can be made slow.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from runtime.atomic import write_text_atomically
from tests.faults.chaos_network import address, is_inside, join_network
from tests.ranks import free_port, launcher_variables
from training.launch import LaunchSettings, launch, training_parser
from training.stages.stage1 import Stage1, Stage1Config

PATIENCE_SECONDS = 10.0  # of ranks that are told to end
JOIN_SECONDS = 60


@dataclass(frozen=True)
class Launch:
    """What is started: flags of `main_stage1.py`, number of ranks, how often they are started again.

    `place` is a folder: `printed-<attempt>-<rank>`, `ranks.json` with the processes, `ends.jsonl` with the exit codes
    of every attempt; a file `slow` there holds the seconds that each write to the disk takes.
    """

    flags: tuple[str, ...]
    ranks: int
    place: str
    restarts: int = 0


def start(plan: Launch) -> Any:
    """The launcher as a process."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["tests.training.tiny_runs", "tests.faults.chaos_launcher", "torch.utils.tensorboard"]
    )
    Path(plan.place).mkdir(parents=True)
    process = server.Process(target=_launch, args=(plan,))
    process.start()
    return process


def processes_of(place: Path) -> list[int]:
    """The ranks that were started last, by rank; none yet at first."""
    try:
        return json.loads((place / "ranks.json").read_text())
    except (OSError, ValueError):
        return []


def ends_of(place: Path) -> list[list[int]]:
    """Exit codes by rank, of every attempt that has ended."""
    try:
        return [json.loads(line) for line in (place / "ends.jsonl").read_text().splitlines()]
    except OSError:
        return []


def printed_by(place: Path) -> str:
    """All that the ranks have said on stderr."""
    return "".join(file.read_text(errors="replace") for file in sorted(place.glob("printed-*")))


def _launch(plan: Launch) -> None:
    multiprocessing.set_start_method("fork", force=True)
    place = Path(plan.place)
    for attempt in range(plan.restarts + 1):
        port = free_port()
        ranks = [multiprocessing.Process(target=_rank, args=(plan, attempt, port, rank)) for rank in range(plan.ranks)]
        for process in ranks:
            process.start()
        write_text_atomically(place / "ranks.json", json.dumps([process.pid for process in ranks]))
        _wait(ranks)
        with open(place / "ends.jsonl", "a") as file:
            file.write(json.dumps([process.exitcode for process in ranks]) + "\n")
        if not any(process.exitcode for process in ranks):
            return
    sys.exit(1)


def _wait(ranks: list[Any]) -> None:
    """Until all have ended well, or one has not and the others were made to end."""
    while any(process.exitcode is None for process in ranks):
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.terminate()
            deadline = time.monotonic() + PATIENCE_SECONDS
            for process in ranks:
                process.join(max(0.0, deadline - time.monotonic()))
                process.kill()
                process.join()
            return
        time.sleep(0.05)


def _rank(plan: Launch, attempt: int, port: int, rank: int) -> None:
    if is_inside():
        join_network(rank)
        os.environ.update(GLOO_SOCKET_IFNAME="eth0")
    os.environ.update(launcher_variables(rank, plan.ranks), MASTER_PORT=str(port))
    os.environ.update(MASTER_ADDR=address(0) if is_inside() else "127.0.0.1")
    os.environ.update(TORCHELASTIC_RUN_ID=plan.place, TORCHELASTIC_RESTART_COUNT=str(attempt))
    torch.set_num_threads(1)
    slow_down(Path(plan.place) / "slow")
    with open(f"{plan.place}/printed-{attempt:02d}-{rank}", "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["main_stage1.py", *plan.flags]
    flags = [*plan.flags, "--join-timeout", str(JOIN_SECONDS)]
    launch(Stage1Config, Stage1, LaunchSettings.from_flags(training_parser("").parse_args(flags)))


def slow_down(switch: Path) -> None:
    """Makes this process wait at everything that reaches for the disk while the file is there."""

    def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                time.sleep(float(switch.read_text()))
            except (OSError, ValueError):
                pass
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, slowed(getattr(os, name)))
