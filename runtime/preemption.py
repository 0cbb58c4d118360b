"""Being told to stop: SIGTERM and SIGUSR1 ask a run to end at its next step boundary, with everything saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED_EXIT_CODE = 75
"""What a run that was told to stop exits with: `EX_TEMPFAIL` of sysexits.h, "try again later"."""


class Preempted(SystemExit):
    """Ends the process with `PREEMPTED_EXIT_CODE` after its state was saved."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED_EXIT_CODE)


class StopSignals:
    """While entered, `SIGTERM` and `SIGUSR1` no longer end the process but set `received`, the signal's name.

    Signals can be handled in the main thread only; anywhere else entering changes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # nothing else: the handler may run in the middle of anything
        self.received = signal.Signals(number).name
