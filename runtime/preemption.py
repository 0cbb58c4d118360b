"""Being told to stop: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 ask a run to end at its next step boundary, with everything
saved. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from runtime.errors import INTERRUPTED_EXIT_CODE
from runtime.processes.system import STOP_SIGNALS

PREEMPTED_EXIT_CODE = 75
"""What a run that was told to stop exits with: `EX_TEMPFAIL` of sysexits.h, "try again later"."""
LAUNCHER_VARIABLE = "TORCHELASTIC_RUN_ID"  # torchrun sets it for its workers
_ONE_PRESS_SECONDS = 1.0


class Preempted(SystemExit):
    """Ends the process with `PREEMPTED_EXIT_CODE` after its state was saved."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED_EXIT_CODE)


class StopSignals:
    """While entered, these signals no longer end the process but set `received`, the signal's name.

    A second SIGINT ends it without any more work: whatever is half written has no reader. A launcher passes on what the
    terminal has sent already, so that what follows within `_ONE_PRESS_SECONDS` is the same press there. Signals can be
    handled in the main thread only; anywhere else entering changes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pressed: float | None = None
        self._one_press = _ONE_PRESS_SECONDS if LAUNCHER_VARIABLE in os.environ else 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # as little as can be: the handler may run in the middle of anything
        if number == signal.SIGINT:
            if self._pressed is not None and time.monotonic() - self._pressed >= self._one_press:
                os._exit(INTERRUPTED_EXIT_CODE)
            if self._pressed is None and not self._one_press:
                # a main thread that waits inside a library would not come to the second one: the system ends it
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._pressed = self._pressed or time.monotonic()
        self.received = signal.Signals(number).name
