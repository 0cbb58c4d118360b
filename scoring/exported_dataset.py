"""A split of a data set as a source of images: `python -m data.export` in a process of its own, read as a stream.

This package knows no data set; the two meet in a stream of records, one (label, image) for each image. Axes: B batch,
C channels, H W image.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from runtime.errors import UserError, one_line
from runtime.npz import RowStream

DATASET_PREFIX = "dataset:"
_ROOT = Path(__file__).resolve().parents[1]


class ExportedDataset:
    """The images of `dataset:NAME:SPLIT` as evaluation sees them, with their labels.

    Nothing is stored: every iteration exports the split anew. What the export has to say about unreadable images goes
    to stderr.

    Args:
        options: further words of the export's command line (`resolution=256`, `--data-root DIR`).

    Raises:
        UserError: the name is malformed, or what the export refuses, in its words.
    """

    skipped: Sequence[str] = ()

    def __init__(self, spec: str, options: Sequence[str] = ()):
        parts = spec.removeprefix(DATASET_PREFIX).split(":")
        if len(parts) != 2 or not all(parts):
            raise UserError(f"{spec!r} must be dataset:NAME:SPLIT, such as dataset:cifar10:train")
        self.name = spec
        self.words = ["--dataset", parts[0], "--split", parts[1], *options]
        # It has written its header and waits; the first iteration reads on where this left off.
        self._started: Export | None = Export(spec, self.words)
        self.num_images = self._started.records.header.shape[0]

    def __len__(self) -> int:
        return self.num_images

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Tensor]]:
        """See `scoring.image_source.ImageSource`; every rank exports the split, and keeps its own images."""
        export, self._started = self._started or Export(self.name, self.words), None
        start = 0  # a multiple of world_size for every block
        try:
            for record_B in export.blocks(batch_size * world_size):
                index_B = np.arange(start, start + len(record_B))[rank::world_size]
                start += len(record_B)
                if len(index_B):
                    yield _batch(record_B[rank::world_size], index_B)
        finally:
            export.stop()


class Export:
    """One running export and the records it writes."""

    def __init__(self, name: str, words: Sequence[str]):
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self.name, self.messages = name, tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.export", *words, "-"],
            stdout=subprocess.PIPE,
            stderr=self.messages,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.stop = weakref.finalize(self, _stop, self.process, self.messages)
        with self._own_words():
            self.records = RowStream(self.process.stdout)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """All records, `rows` at a time."""
        with self._own_words():
            yield from self.records.blocks(rows)
            if self.process.wait():
                raise ValueError(f"exit code {self.process.returncode}")
        if text := self._text():
            print(text, file=sys.stderr)

    @contextmanager
    def _own_words(self) -> Iterator[None]:
        """When the stream breaks off, the export knows why: its last line is the error."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.process.kill()
            self.process.wait()
            last = (self._text().splitlines() or [one_line(error)])[-1]
            raise UserError(f"{self.name}: {last.removeprefix('error: ')}") from error

    def _text(self) -> str:
        self.messages.seek(0)
        return self.messages.read().decode(errors="replace").strip()


def _stop(process: subprocess.Popen, messages: IO[bytes]) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    messages.close()


def _batch(record_B: np.ndarray, index_B: np.ndarray) -> dict[str, Tensor]:
    image_BHWC = torch.from_numpy(np.ascontiguousarray(record_B["image"]))
    return {
        "image": image_BHWC.permute(0, 3, 1, 2).contiguous(),
        "index": torch.from_numpy(index_B),
        "label": torch.from_numpy(record_B["label"].astype(np.int64)),
    }
