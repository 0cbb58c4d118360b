"""Numbered encoded images: the interface that decoding and data sets read from, and files behind it.

Axes: N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data.config import MAX_IMAGE_BYTES


class Encoded(Protocol):
    """Numbered encoded images."""

    def name(self, index: int) -> str:
        """What a report calls the image."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        ...

    def names(self) -> Iterator[str]:
        """What tells every image apart wherever the data set lies, in order: its path below the root, or its key."""
        ...

    def size(self, index: int) -> int:
        """Bytes of the encoded image; 0 where it is not there or not known without reading it."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...


def checked(encoded: bytes) -> bytes:
    """The bytes of one image; OSError where they are more than any is given."""
    check_size(len(encoded))
    return encoded


def check_size(size: int) -> None:
    """OSError for an encoded image of more bytes than are read."""
    if size > MAX_IMAGE_BYTES:
        raise OSError(f"it has more than {MAX_IMAGE_BYTES} bytes")


class PackedPaths:
    """Files under one root. The relative paths share one buffer: a million Python strings would be copied into every
    data worker as their reference counts change.
    """

    def __init__(self, root: Path, relative: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in relative]
        self.root = str(root)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.end_N = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def name(self, index: int) -> str:
        """The path of the file."""
        return os.path.join(self.root, self._relative(index))

    def names(self) -> Iterator[str]:
        """The relative paths."""
        return map(self._relative, range(len(self)))

    def size(self, index: int) -> int:
        """Bytes of the file."""
        try:
            return os.stat(self.name(index)).st_size
        except OSError:
            return 0

    def _relative(self, index: int) -> str:
        start = int(self.end_N[index - 1]) if index else 0
        return os.fsdecode(self.text[start : int(self.end_N[index])].tobytes())

    def read(self, index: int) -> bytes:
        """The content of the file."""
        with open(self.name(index), "rb") as file:
            return checked(file.read(MAX_IMAGE_BYTES + 1))

    def __len__(self) -> int:
        return len(self.end_N)


class Chosen:
    """Some images of a source, renumbered."""

    def __init__(self, source: Encoded, index_N: np.ndarray) -> None:
        self.source, self.index_N = source, index_N

    def name(self, index: int) -> str:
        """That of the source."""
        return self.source.name(int(self.index_N[index]))

    def names(self) -> Iterator[str]:
        """Those of the source."""
        names = list(self.source.names())
        return (names[index] for index in self.index_N.tolist())

    def size(self, index: int) -> int:
        """That of the source."""
        return self.source.size(int(self.index_N[index]))

    def read(self, index: int) -> bytes:
        """That of the source."""
        return self.source.read(int(self.index_N[index]))

    def __len__(self) -> int:
        return len(self.index_N)
