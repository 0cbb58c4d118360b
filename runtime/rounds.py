"""How long processes wait for each other, and a name for one start of all of them.

torchrun restarts processes on the store of their predecessors. What it keeps of those, such as the address at which a
rank listened, must not be taken for news.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from runtime.errors import UserError, first_few

# for the command line, which must not wait for torch
BACKENDS = ("auto", "gloo", "nccl")
DEFAULT_TIMEOUT_SECONDS = 86400
"""How long a collective waits for another rank: rank 0 may prepare data for hours."""
DEFAULT_JOIN_SECONDS = 600
"""How long the processes wait for each other at the start: nodes may be given minutes apart."""
MOST_SECONDS = 1e9  # longer ones overflow in torch
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.002, 0.1


def check_waits(timeout: float, join_timeout: float) -> None:
    """UserError for a flag whose seconds nobody can wait: none, not a number, more than `MOST_SECONDS`."""
    for flag, seconds in (("--timeout", timeout), ("--join-timeout", join_timeout)):
        if not 0 < seconds < MOST_SECONDS:
            raise UserError(f"{flag} {seconds:g} must lie above 0 and below {MOST_SECONDS:g} seconds")


class KeyValueStore(Protocol):
    """What is needed of a c10d store."""

    def set(self, key: str, value: str) -> Any: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


def agree_on_round(store: KeyValueStore, rank: int, world_size: int, timeout: float) -> str:
    """A name that the processes which call this together have in common, and no earlier ones had.

    Every rank shows a number that it drew; rank 0 answers to that number with the name. An old number may still be
    there when rank 0 looks, but its answer is read by nobody, and rank 0 looks again until all have confirmed the name.

    Raises:
        TimeoutError: not all processes came within `timeout` seconds.
    """
    if rank == 0:
        return _name_round(store, world_size, timeout)
    number = secrets.token_hex(8)
    store.set(f"number{rank}", number)
    deadline = time.monotonic() + timeout
    _wait_for(lambda: store.check([f"answer{number}"]), deadline, lambda: "rank 0 has not come")
    name = store.get(f"answer{number}").decode("ascii")
    store.set(f"confirmed{name}/{rank}", "")
    _wait_for(
        lambda: store.check([f"complete{name}"]), deadline, lambda: "not all processes have come; rank 0 says which"
    )
    return name


def _name_round(store: KeyValueStore, world_size: int, timeout: float) -> str:
    name = secrets.token_hex(8)
    waiting = {rank: b"" for rank in range(1, world_size)}

    def all_confirmed() -> bool:
        for rank, answered in list(waiting.items()):
            if store.check([f"confirmed{name}/{rank}"]):
                del waiting[rank]
            elif store.check([f"number{rank}"]) and (number := store.get(f"number{rank}")) != answered:
                store.set(f"answer{number.decode('ascii')}", name)
                waiting[rank] = number
        return not waiting

    _wait_for(all_confirmed, time.monotonic() + timeout, lambda: _missing(sorted(waiting), world_size))
    store.set(f"complete{name}", "")
    return name


def _missing(ranks: list[int], world_size: int) -> str:
    return f"{len(ranks)} of {world_size} processes have not come: rank {first_few(ranks, 8)}"


def _wait_for(condition: Callable[[], bool], deadline: float, problem: Callable[[], str]) -> None:
    pause = _FIRST_PAUSE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(problem())
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
