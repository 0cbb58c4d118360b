"""Data sets of encoded images: decoded on demand, unreadable ones replaced, counted and reported.

Axes: B batch, N images of the split, C channels, H W image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data.dataset import ImageDataset
from data.errors import DataError, TooManyCorruptImages
from data.images.aspect import Size
from data.images.decoding import UNREADABLE, read_pixels
from data.images.encoded_images import Encoded
from data.images.pixel_rule import Pixels
from data.images.transforms import NUM_DRAWS, Pipeline
from data.noise import uniforms
from data.request import DatasetRequest
from data.splits import split_name
from runtime.errors import one_line

_CROP_STREAM = 0x4350  # keeps crops apart from every other use of the same seed
Loaded = TypeVar("Loaded")
_log = logging.getLogger(__name__)


class ReplacingDataset(ImageDataset):
    """Numbered entries of a source, read when asked for.

    An unreadable one is replaced by the next readable one, label included, so that batches stay whole and the
    replacement is the same on every run. `index` stays the number that was asked for: an evaluation that counts every
    number once stays exact. The marks are shared with data workers; more than `max_corrupt` distinct ones are an error.

    Attributes:
        prefix: of the names: the folder of the split, where each has one of its own.
    """

    prefix = ""

    def __init__(
        self,
        request: DatasetRequest,
        resolution: Size,
        source: Encoded,
        labels_N: np.ndarray,
        class_names: Sequence[str],
    ) -> None:
        assert len(source) == len(labels_N)
        super().__init__(request.name, request.split, resolution, class_names, labels_N, request.seed)
        self.source, self.groups = source, getattr(source, "groups", None)
        self.max_corrupt = request.config.max_corrupt
        self.corrupt_N = torch.zeros(len(labels_N), dtype=torch.uint8).share_memory_()
        self.flattened_N = torch.zeros(len(labels_N), dtype=torch.uint8).share_memory_()

    def names(self) -> Iterator[str]:
        return (self.prefix + split_name(name) for name in self.source.names())

    def image_size(self, index: int) -> int:
        return self.source.size(index)

    def corrupt_count(self) -> int:
        return int(self.corrupt_N.count_nonzero())

    def corrupt_names(self, limit: int = 10) -> list[str]:
        return [self.source.name(index) for index in self.corrupt_N.nonzero().flatten()[:limit].tolist()]

    def flattened_count(self) -> int:
        return int(self.flattened_N.count_nonzero())

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

    def read_for(self, index: int) -> int:
        """The entry that was read when `index` was asked for: all before it are marked by now."""
        while self.corrupt_N[index]:
            index = (index + 1) % len(self)
        return index

    def _mark_corrupt(self, index: int, error: Exception) -> None:
        self.corrupt_N[index] = 1
        name, count = self.source.name(index), self.corrupt_count()
        if count > self.max_corrupt or count == len(self):
            raise TooManyCorruptImages(
                f"{count} images of {self.name} ({self.split}) cannot be read, dataset.max_corrupt is "
                f"{self.max_corrupt}; the last one is {name} ({one_line(error)})"
            ) from error
        _log.warning("skipping unreadable image %s (%s)", name, one_line(error))


class FileDataset(ReplacingDataset):
    """Images decoded when asked for; unreadable are missing and truncated ones, what is no image, and what has more
    than max_image_pixels.
    """

    def __init__(
        self, request: DatasetRequest, source: Encoded, labels_N: np.ndarray, class_names: Sequence[str]
    ) -> None:
        super().__init__(request, request.resolution, source, labels_N, class_names)
        self.pipeline = Pipeline(request.crop, request.resolution, request.config.hflip, request.keep)
        self.rule, self.channels = request.pixels, request.pixels.channels

    @classmethod
    def of_one_class(cls, request: DatasetRequest, source: Encoded) -> FileDataset:
        """Images without labels."""
        return cls(request, source, np.zeros(len(source), dtype=np.int64), [request.name])

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        draws_BK: Iterable[np.ndarray | None] = [None] * len(index_B)
        if noise_key_B is not None and self.split == "train":
            draws_BK = uniforms(NUM_DRAWS, _CROP_STREAM, self.seed, noise_key_B)
        image_BCHW = torch.empty(len(index_B), self.channels, *self.resolution, dtype=torch.uint8)
        asked_B = torch.from_numpy(index_B.copy())
        used_B = asked_B.clone()
        for row, (index, draws) in enumerate(zip(index_B.tolist(), draws_BK)):
            found, pixels = self.first_readable(index, self._decoded)
            used_B[row], image_BCHW[row] = found, self.pipeline(pixels.image, draws)
            if pixels.flattened:
                self.flattened_N[found] = 1
        return {"image": image_BCHW, "label": self.labels_N[used_B], "index": asked_B}

    def _decoded(self, index: int) -> Pixels:
        pixels = read_pixels(self.source.read(index), self.rule)
        self.pipeline.check(pixels.image, self.rule.max_pixels)
        return pixels
