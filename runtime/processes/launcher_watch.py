"""Ranks end when their launcher is gone: after `kill -9` of torchrun nobody would restart, stop or count them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from runtime.preemption import LAUNCHER_VARIABLE, PREEMPTED_EXIT_CODE

POLL_SECONDS = 1.0
GRACE_SECONDS = 300.0
"""How long an orphan may take to its next step boundary and to save there."""


def launcher_of_this_process() -> int | None:
    """torchrun, the parent of this process; None without it: a process started by hand may outlive its shell.

    To be asked as early as can be: an orphan has another parent.
    """
    return os.getppid() if LAUNCHER_VARIABLE in os.environ else None


class LauncherWatch:
    """Whether the launcher still lives.

    While entered, the loss is noticed within `POLL_SECONDS`; a process that has not ended `GRACE_SECONDS` later, as
    one that waits for a rank that ended first, is ended.

    Args:
        launcher: what `launcher_of_this_process` said; nothing is watched without one.
        warn: told once.
        stop: ends the process; exchanged in tests.
    """

    def __init__(
        self, launcher: int | None, warn: Callable[[str], None], stop: Callable[[int], None] = os._exit
    ) -> None:
        self.is_gone = False
        self._launcher, self._warn, self._stop = launcher, warn, stop
        self._ended = threading.Event()

    def __enter__(self) -> LauncherWatch:
        if self._launcher is not None:
            threading.Thread(target=self._watch, name="launcher watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while os.getppid() == self._launcher:
            if self._ended.wait(POLL_SECONDS):
                return
        self.is_gone = True
        self._warn(f"the launcher (process {self._launcher}) has ended: the run saves its next step and ends")
        if not self._ended.wait(GRACE_SECONDS):
            self._stop(PREEMPTED_EXIT_CODE)  # as after a signal: the run can be resumed
