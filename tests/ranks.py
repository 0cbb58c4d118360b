"""Ranks for tests: processes of one gloo group, forked from one server that has imported torch already, so that each
starts within 0.1 s. Tests ask for the fixture `on_ranks`; real launchers are `tests/commands.py`'s.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from runtime import distributed

IMPORTED_ONCE = [
    "torch",
    "pytest",
    "hypothesis",
    "rqstack.quantizers",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
]
PATIENCE_SECONDS = 120.0  # of a collective that waits for another rank


def run_on_ranks(
    work: Callable[..., Any], *args: object, folder: Path, number: int = 2, join: bool = True
) -> list[Any]:
    """Runs work(rank, *args) in `number` processes of a gloo group on CPUs; what each returned, by rank.

    They see the environment variables that the first call of a test run saw.

    Args:
        work: a function of a module; an error in one process is raised here.
        folder: for what the ranks return, which must be what `torch.load(weights_only=True)` reads.
        join: whether they form the group, which whatever asks `runtime.distributed` for one then gets; otherwise they
            only find the variables of a launcher.

    Returns:
        One value per rank; None for a process that ended by itself.
    """
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    # as under torchrun the store outlives every rank, so that one that ends early takes nothing from the others
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    mp.start_processes(_rank, (number, place, join, str(folder), work, args), nprocs=number, start_method="forkserver")
    files = [folder / f"rank{rank}.pt" for rank in range(number)]
    return [torch.load(file, weights_only=True) if file.exists() else None for file in files]


def _rank(
    rank: int,
    number: int,
    place: dict[str, str],
    join: bool,
    folder: str,
    work: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    os.environ.update(launcher_variables(rank, number) | place)
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    if join:
        env = distributed.initialize(PATIENCE_SECONDS, device="cpu")
        distributed.initialize = lambda *args, **kwargs: env  # a process can join only once
    try:
        torch.save(work(rank, *args), Path(folder) / f"rank{rank}.pt")
    finally:
        distributed.shutdown()


def launcher_variables(rank: int, number: int) -> dict[str, str]:
    """What a launcher on a single node tells a process, but for the port at which they meet."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in variables.items()}


def children_of(pid: int) -> list[int]:
    """Processes whose status names `pid` as their parent (not every kernel lists the children of a process)."""
    children = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            parent = file.read_text().rpartition(")")[2].split()[1]
            children += [int(file.parent.name)] if int(parent) == pid else []
    return sorted(children)


def is_running(pid: int) -> bool:
    """Not one that has ended and waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out to others in the meantime."""
    first_given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(first_given_away, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
