"""The progress bar: how far a run is, how fast it goes, when it will be done."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

_SMOOTHING = 0.9


def duration(seconds: float) -> str:
    """`2d03h`, `3h04m`, `4m05s` or `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class TqdmStream:
    """A text stream that writes above a running progress bar instead of through it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            tqdm.write(text.rstrip("\n"), file=self._stream)

    def flush(self) -> None:
        self._stream.flush()


class Progress:
    """Counts the steps of a run.

    The bar appears on terminals only; `images_per_second` and `eta_seconds` are there in any case, for the log.

    Args:
        total: steps the run has when it ends.
        initial: steps done before (after resuming).
        images_per_step: images of all ranks together in one step.
        name: shown in front of the bar.
        visible: False for ranks that keep quiet.
    """

    def __init__(
        self, total: int, initial: int = 0, images_per_step: int = 1, name: str = "", visible: bool = True
    ) -> None:
        self.total = total
        self.step = initial
        self.images_per_step = images_per_step
        self._seconds_per_step = 0.0
        self._last_time = time.perf_counter()
        # `disable=None` lets tqdm hide the bar where the output is not a terminal.
        self._bar = tqdm(total=total, initial=initial, desc=name, dynamic_ncols=True, disable=None if visible else True)

    @property
    def images_per_second(self) -> float:
        """Smoothed over about the last ten updates; 0 before the first."""
        return self.images_per_step / self._seconds_per_step if self._seconds_per_step else 0.0

    @property
    def eta_seconds(self) -> float:
        return max(0, self.total - self.step) * self._seconds_per_step

    def update(self, steps: int = 1, **shown: Any) -> None:
        """Say that `steps` more steps are done; `shown` appears at the end of the bar."""
        now = time.perf_counter()
        current = (now - self._last_time) / steps
        weight = _SMOOTHING**steps if self._seconds_per_step else 0.0
        self._seconds_per_step = weight * self._seconds_per_step + (1 - weight) * current
        self._last_time = now
        self.step += steps
        if not self._bar.disable:
            with suppress(OSError):  # the terminal may be gone: the run goes on
                self._bar.set_postfix(shown | {"img/s": f"{self.images_per_second:.1f}"}, refresh=False)
                self._bar.update(steps)

    def skip_time(self) -> None:
        """Leave the time since the last update (an evaluation, a checkpoint) out of the speed."""
        self._last_time = time.perf_counter()

    def close(self) -> None:
        with suppress(OSError):
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
