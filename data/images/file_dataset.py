"""Data sets of encoded images: decoded on demand, unreadable ones replaced, counted and reported.

Axes: B batch, N images of the split, C channels, H W image.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.dataset import ImageDataset
from data.images.transforms import NUM_DRAWS, Pipeline
from data.noise import uniforms
from data.request import DatasetRequest

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_CROP_STREAM = 0x4350  # keeps crops apart from every other use of the same seed
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
Loaded = TypeVar("Loaded")
_log = logging.getLogger(__name__)


class DataError(ValueError):
    """Training data that cannot be had while training; one line, also when it comes out of a data worker, whose
    traceback PyTorch would put in front.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rsplit(f"{type(self).__name__}: ", 1)[-1])


class TooManyCorruptImages(DataError):
    """More unreadable images than allowed."""


class DataUnavailable(DataError):
    """The store that holds the images does not answer; nothing is wrong with them, and none is marked."""


class Encoded(Protocol):
    """Numbered encoded images: where `FileDataset` reads from."""

    def name(self, index: int) -> str:
        """What a report calls the image."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...


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
        start = int(self.end_N[index - 1]) if index else 0
        return os.path.join(self.root, os.fsdecode(self.text[start : int(self.end_N[index])].tobytes()))

    def read(self, index: int) -> bytes:
        with open(self.name(index), "rb") as file:
            return file.read()

    def __len__(self) -> int:
        return len(self.end_N)


class Chosen:
    """Some images of a source, renumbered."""

    def __init__(self, source: Encoded, index_N: np.ndarray) -> None:
        self.source, self.index_N = source, index_N

    def name(self, index: int) -> str:
        return self.source.name(int(self.index_N[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.index_N[index]))

    def __len__(self) -> int:
        return len(self.index_N)


class ReplacingDataset(ImageDataset):
    """Numbered entries of a source, read when asked for.

    An unreadable one is replaced by the next readable one, label included, so that batches stay whole and the
    replacement is the same on every run. `index` stays the number that was asked for: an evaluation that counts every
    number once stays exact. The marks are shared with data workers; more than `max_corrupt` distinct ones are an error.
    """

    def __init__(
        self,
        request: DatasetRequest,
        resolution: int,
        source: Encoded,
        labels_N: np.ndarray,
        class_names: Sequence[str],
    ) -> None:
        assert len(source) == len(labels_N)
        super().__init__(request.name, request.split, resolution, class_names, labels_N, request.seed)
        self.source, self.groups = source, getattr(source, "groups", None)
        self.max_corrupt = request.config.max_corrupt
        self.corrupt_N = torch.zeros(len(labels_N), dtype=torch.uint8).share_memory_()

    def corrupt_count(self) -> int:
        return int(self.corrupt_N.count_nonzero())

    def corrupt_names(self, limit: int = 10) -> list[str]:
        return [self.source.name(index) for index in self.corrupt_N.nonzero().flatten()[:limit].tolist()]

    def first_readable(self, index: int, load: Callable[[int], Loaded]) -> tuple[int, Loaded]:
        """The first index from `index` on for which `load(index)` fails with no error of reading, and its result."""
        while True:
            if not self.corrupt_N[index]:
                try:
                    return index, load(index)
                except DataError:
                    raise
                except UNREADABLE as error:
                    self._mark_corrupt(index, error)
            index = (index + 1) % len(self)

    def _mark_corrupt(self, index: int, error: Exception) -> None:
        self.corrupt_N[index] = 1
        name, count = self.source.name(index), self.corrupt_count()
        if count > self.max_corrupt or count == len(self):
            raise TooManyCorruptImages(
                f"{count} images of {self.name} ({self.split}) cannot be read, dataset.max_corrupt is "
                f"{self.max_corrupt}; the last one is {name} ({_one_line(error)})"
            ) from error
        _log.warning("skipping unreadable image %s (%s)", name, _one_line(error))


class FileDataset(ReplacingDataset):
    """Images decoded when asked for; unreadable are missing and truncated ones, what is no image, and what has more
    than max_image_pixels.
    """

    def __init__(
        self, request: DatasetRequest, source: Encoded, labels_N: np.ndarray, class_names: Sequence[str]
    ) -> None:
        super().__init__(request, request.resolution, source, labels_N, class_names)
        self.pipeline = Pipeline(request.crop, request.resolution, request.config.hflip)
        self.max_image_pixels = request.config.max_image_pixels

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        draws_BK: Iterable[np.ndarray | None] = [None] * len(index_B)
        if noise_key_B is not None and self.split == "train":
            draws_BK = uniforms(NUM_DRAWS, _CROP_STREAM, self.seed, noise_key_B)
        image_BCHW = torch.empty(len(index_B), 3, self.resolution, self.resolution, dtype=torch.uint8)
        asked_B = torch.from_numpy(index_B.copy())
        used_B = asked_B.clone()
        for row, (index, draws) in enumerate(zip(index_B.tolist(), draws_BK)):
            used_B[row], image = self.first_readable(index, self._decoded)
            image_BCHW[row] = self.pipeline(image, draws)
        return {"image": image_BCHW, "label": self.labels_N[used_B], "index": asked_B}

    def _decoded(self, index: int) -> Image.Image:
        return decode_rgb(self.source.read(index), self.max_image_pixels)


def decode_rgb(encoded: bytes, max_pixels: int) -> Image.Image:
    """A fully decoded RGB image; ValueError when it has more than max_pixels, checked before decoding."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} is more than max_image_pixels {max_pixels}")
        return image.convert("RGB")


def list_images(root: Path) -> list[str]:
    """Relative POSIX paths of all images below root, sorted; hidden files and folders are left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(folder).relative_to(root).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found += [prefix + name for name in files if not name.startswith(".") and _is_image(name)]
    return sorted(found)


def holds_image(root: str | Path) -> bool:
    """Whether any image lies below root; stops at the first."""
    subfolders = []
    for entry in os.scandir(root):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            subfolders.append(entry.path)
        elif _is_image(entry.name):
            return True
    return any(holds_image(folder) for folder in subfolders)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
