"""What a model keeps for decoding besides its weights: who decodes with it now, and programs for the next time.

It is part of no state dict, and a copied or loaded model starts with an empty one.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, Protocol

from rqtransformer.fast.weight_format import WeightFormat

# Idle programs of a model. Each keeps its caches (8 GB for 500 samples of the largest published model in bf16).
MOST_IDLE = 3


class Program(Protocol):
    """See `decoding.decode_program`."""

    key: Hashable
    reads: tuple[int, ...]

    def close(self) -> None:
        """Waits until its memory may be freed."""
        ...


class DecodingState:
    """The walks through a model and its idle programs.

    Attributes:
        walks: how many hold the model in decoding mode.
        was_training: the mode before the first of them.
        form: the packed weights that are in place.
    """

    def __init__(self) -> None:
        self.walks, self.was_training = 0, False
        self.form: WeightFormat | None = None
        self._idle: list[Program] = []  # the last used at the end
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> DecodingState:
        return DecodingState()

    def __reduce__(self) -> tuple[type[DecodingState], tuple[()]]:
        return DecodingState, ()

    def take(self, key: Hashable, reads: tuple[int, ...]) -> Any | None:
        """An idle program of this kind, for the caller alone, or None.

        Those of the kind that were made for other memory than `reads` says are dropped.
        """
        with self._lock:
            same = [program for program in self._idle if program.key == key]
            current = [program for program in same if program.reads == reads]
            found = current[-1] if current else None
            gone = [program for program in same if program not in current]
            self._idle = [program for program in self._idle if program is not found and program not in gone]
        _close(gone)
        return found

    def give_back(self, program: Program) -> None:
        """Keeps a program for the next time, and drops the one not used for longest where there are too many."""
        with self._lock:
            self._idle.append(program)
            gone, self._idle = self._idle[:-MOST_IDLE], self._idle[-MOST_IDLE:]
        _close(gone)

    def clear(self) -> None:
        """Drops all idle programs."""
        with self._lock:
            gone, self._idle = self._idle, []
        _close(gone)


def _close(programs: list[Program]) -> None:
    for program in programs:
        program.close()
