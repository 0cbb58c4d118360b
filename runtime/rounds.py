"""A name for one start of all processes, on a store that keeps what earlier starts wrote.

torchrun restarts processes on the store of their predecessors. What those wrote, such as the address at which a rank
listened, must not be taken for news.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Protocol

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.002, 0.1


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
    _wait_for(lambda: store.check([f"answer{number}"]), timeout, "rank 0")
    name = store.get(f"answer{number}").decode("ascii")
    store.set(f"confirmed{name}/{rank}", "")
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

    _wait_for(all_confirmed, timeout, f"all of {world_size} processes")
    return name


def _wait_for(condition: Any, timeout: float, whom: str) -> None:
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {whom} to start")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
