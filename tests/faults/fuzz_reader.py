"""What the fuzz knows of a reader."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path


class Reader:
    """One kind of file.

    Attributes:
        errors: what a refusal raises; `one_line`: its text is one line.
        words: what means something in the format.
    """

    errors: tuple[type[BaseException], ...] = (ValueError, OSError)
    one_line = True
    words: Sequence[bytes] = ()

    def seeds(self, folder: Path) -> list[bytes]:
        """Sound files."""
        raise AssertionError(f"{type(self).__name__} must implement seeds")

    def read(self, content: bytes, folder: Path) -> None:
        """Reads a file as the product does, all of it."""
        raise AssertionError(f"{type(self).__name__} must implement read")

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        """Half of the files get right checksums again, without which nothing behind them is looked at."""
        return content
