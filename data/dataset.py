"""What every data set is: numbered images with labels, as tensors.

Axes: B batch, C channels, H W image, N images of the split, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from data.images.aspect import Size
from data.order import Groups
from data.tokenizers.caption_tokenizer import CaptionTokenizer
from runtime.errors import first_few

VAL_FRACTION = 0.1  # held out where a data set has no validation split, unless the config says otherwise
Item = int | tuple[int, int]


class ImageDataset(torch.utils.data.Dataset):
    """Map-style data set of labelled images; subclasses implement `fetch`.

    `dataset[i]` and `dataset[i, noise_key]` give {image: float32 CHW in [-1, 1], label: int64, index: int64} (and
    `cond`: token ids (L,), where images have captions). Without a noise key, and always on the validation split, the
    image is transformed as for evaluation; with one, augmentation depends on (seed, noise_key) alone. Every image has
    the size `resolution`, (H, W).
    """

    in_memory = False  # True: a batch costs less than handing it over from a data worker
    tokenizer: CaptionTokenizer | None = None  # what made `cond` of captions
    channels = 3  # of `image`
    colour = True  # False: every image is grey, however many channels it is given in
    credit = ""  # what must be said of its makers wherever its pictures are shown
    held_out = False  # the splits were cut from the same images, by their names
    groups: Groups | None = None  # how training shuffles where random access is slow; None: all samples

    def __init__(
        self, name: str, split: str, resolution: Size, class_names: Sequence[str], labels_N: np.ndarray, seed: int
    ) -> None:
        self.name, self.split, self.resolution, self.seed = name, split, resolution, seed
        self.class_names = tuple(class_names)
        self.labels_N = torch.from_numpy(np.ascontiguousarray(labels_N, dtype=np.int64))

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 means that the images have no labels (every label is 0)."""
        return max(1, len(self.class_names))

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        """A batch as stored and shipped between processes: `image` uint8 (B, C, H, W), `label`, `index` int64 (B,)."""
        raise AssertionError(f"{type(self).__name__} must implement fetch")

    def names(self) -> Iterator[str]:
        """What tells every image apart from all others of both splits, in order, wherever the data set lies."""
        return (f"{self.split}/{index}" for index in range(len(self)))

    def image_size(self, index: int) -> int:
        """Bytes of an image where it is stored; 0 where that says nothing about it."""
        return 0

    def content_mark(self) -> str:
        """What else the images and captions depend on, as a hash or in words."""
        return ""

    def corrupt_count(self) -> int:
        """How many distinct images could not be read so far, over all data workers of this process."""
        return 0

    def corrupt_names(self, limit: int = 10) -> list[str]:
        """The first `limit` images that could not be read."""
        return []

    def flattened_count(self) -> int:
        """How many distinct images had something transparent, which was composited over dataset.background."""
        return 0

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        batch = to_float_batch(self.__getitems__([item]))
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One uint8 batch for a list of items: what a data worker hands over (a quarter of the bytes of float)."""
        if isinstance(items[0], (int, np.integer)):
            return self.fetch(self._checked(np.asarray(items, dtype=np.int64)), None)
        pairs_B2 = np.asarray(items, dtype=np.int64)
        return self.fetch(self._checked(pairs_B2[:, 0]), pairs_B2[:, 1])

    def _checked(self, index_B: np.ndarray) -> np.ndarray:
        if index_B.min() < 0 or index_B.max() >= len(self):
            raise IndexError(f"index out of range for {self.name} ({self.split}) with {len(self)} images")
        return index_B


@runtime_checkable
class Captioned(Protocol):
    """A data set whose images have captions, whether or not it turns them into tokens."""

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The first captions of these images, in words."""
        ...

    def all_captions(self, index: int) -> list[str]:
        """All captions of an image."""
        ...


def to_float_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with `image` as float32 in [-1, 1], on the device it lies on; rounding to uint8 inverts it.

    A batch without images (cached latents) stays as it is.
    """
    if "image" not in batch:
        return batch
    return {**batch, "image": batch["image"].to(torch.float32).div_(127.5).sub_(1.0)}


def reading_notes(dataset: ImageDataset) -> list[str]:
    """A line for each thing that this process did to images on its own account, with how many they were."""
    notes = []
    if count := dataset.corrupt_count():
        names = first_few(dataset.corrupt_names())
        notes.append(f"{count} unreadable {dataset.split} images were replaced: {names}")
    if count := dataset.flattened_count():
        notes.append(f"{count} {dataset.split} images have transparency, shown over dataset.background")
    return notes
