"""The progress bar: how far a run is, how fast it goes, when it will be done."""

from __future__ import annotations

import time
from typing import Any, TextIO

from tqdm import tqdm

_SMOOTHING = 0.9


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
    """Counts steps of a run.

    The bar appears on terminals only; `images_per_second` and `eta_seconds` are there in any case, for the log.

    Args:
        total_steps: step number at which the run ends.
        start_step: step number it begins with (after resuming).
        images_per_step: images of all ranks together in one step.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, images_per_step: int = 1, name: str = "", visible: bool = True
    ) -> None:
        self.total_steps = total_steps
        self.step = start_step
        self.images_per_step = images_per_step
        self._seconds_per_step = 0.0
        self._last_time = time.perf_counter()
        # `disable=None` lets tqdm hide the bar where the output is not a terminal.
        self._bar = tqdm(
            total=total_steps, initial=start_step, desc=name, dynamic_ncols=True, disable=None if visible else True
        )

    @property
    def images_per_second(self) -> float:
        """Smoothed over about the last ten updates; 0 before the first."""
        return self.images_per_step / self._seconds_per_step if self._seconds_per_step else 0.0

    @property
    def eta_seconds(self) -> float:
        return max(0, self.total_steps - self.step) * self._seconds_per_step

    def update(self, step: int, **shown: Any) -> None:
        """Say that `step` steps are done; `shown` appears at the end of the bar."""
        now = time.perf_counter()
        done = step - self.step
        if done > 0:
            current = (now - self._last_time) / done
            weight = _SMOOTHING**done if self._seconds_per_step else 0.0
            self._seconds_per_step = weight * self._seconds_per_step + (1 - weight) * current
            self._last_time, self.step = now, step
        if not self._bar.disable:
            self._bar.set_postfix(shown | {"img/s": f"{self.images_per_second:.1f}"}, refresh=False)
            self._bar.update(step - self._bar.n)

    def skip_time(self) -> None:
        """Leave the time since the last update (an evaluation, a checkpoint) out of the speed."""
        self._last_time = time.perf_counter()

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
