"""What an item of the acceptance says while it runs. Every entry is sent at once: a later crash does not lose it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.settings import Settings
from runtime.errors import one_line

Entry = tuple[str, Any, str | None]  # name, value, and what is wrong with it


class Report:
    """Takes an item's entries.

    Args:
        settings: of the run.
        send: called with every entry.
    """

    def __init__(self, settings: Settings, send: Callable[[Entry], object]) -> None:
        self.settings, self._send = settings, send
        self.device = torch.device("cuda", 0) if settings.device == "cuda" else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # two runs on one machine would wait for each other's threads

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def tiny(self) -> bool:
        """Whether sizes are those of a rehearsal."""
        return self.settings.tiny

    def note(self, name: str, value: Any) -> None:
        """A measurement."""
        self._send((name, value, None))

    def check(self, name: str, holds: bool, **values: Any) -> None:
        """A statement with the numbers it rests on; the item fails where it does not hold."""
        self._send((name, {"right": bool(holds), **values}, None if holds else f"{name} is wrong: {values}"))

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """What fails inside is an entry, and the item goes on; memory of the case is free afterwards."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {one_line(error)[:400]}"
            self._send((name, {"error": text, "at": where(error)}, f"{name}: {text}"))
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def where(error: BaseException) -> list[str]:
    """The last places of a traceback, as file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames][-6:]
