"""Processes for tests: forked from one server that has imported torch already, so that each starts within 0.1 s; and
who started whom."""

import contextlib
import multiprocessing
import random
import socket
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

IMPORTED_ONCE = [
    "torch",
    "pytest",
    "hypothesis",
    "rqstack.quantizers",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
]


def start_processes(worker: Callable[..., None], *args: object, number: int = 2) -> None:
    """Run worker(rank, *args) in `number` processes and wait for them; an error in one is raised here.

    They see the environment variables that the first call of a test run saw.
    """
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    mp.start_processes(worker, args, nprocs=number, start_method="forkserver")


def children_of(pid: int) -> list[int]:
    """Processes whose status names `pid` as their parent (not every kernel lists the children of a process)."""
    children = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            parent = file.read_text().rpartition(")")[2].split()[1]
            children += [int(file.parent.name)] if int(parent) == pid else []
    return sorted(children)


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out to others in the meantime."""
    first_given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(first_given_away, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
