"""Data sets small enough to hold: one uint8 tensor, read by index, augmented a batch at a time.

Axes: B batch, N images of the split, C channels, H W image.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.dataset import ImageDataset
from data.images.aspect import Size, covering, middle
from data.noise import uniforms
from data.request import DatasetRequest

_AUGMENT_STREAM = 0x4155  # keeps augmentation apart from every other use of the same seed
_RESIZE_CHUNK = 4096  # images per float copy while resizing


class MemoryDataset(ImageDataset):
    """Images kept decoded at their final size: image_NCHW uint8 with one or three channels.

    `numbers_N` are those of the images before a split was cut from them.
    """

    in_memory = True

    def __init__(
        self,
        request: DatasetRequest,
        image_NCHW: Tensor,
        labels_N: np.ndarray,
        class_names: Sequence[str],
        numbers_N: np.ndarray | None = None,
    ) -> None:
        assert image_NCHW.dtype == torch.uint8 and len(image_NCHW) == len(labels_N)
        height, width = image_NCHW.shape[-2:]
        super().__init__(request.name, request.split, (height, width), class_names, labels_N, request.seed)
        self.image_NCHW = image_NCHW.contiguous()
        self.hflip, self.random_shift = bool(request.config.hflip), request.config.random_shift
        self.channels = request.pixels.channels
        self.colour = image_NCHW.shape[1] > 1 and self.channels > 1
        self.numbers_N = numbers_N

    def names(self) -> Iterator[str]:
        return super().names() if self.numbers_N is None else map(str, self.numbers_N.tolist())

    def content_mark(self) -> str:
        return f"{zlib.crc32(self.image_NCHW.numpy().data):08x}"

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        chosen_B = torch.from_numpy(index_B)
        image_BCHW = self.image_NCHW.index_select(0, chosen_B)
        if noise_key_B is not None and self.split == "train":
            image_BCHW = augment(image_BCHW, self.seed, noise_key_B, self.hflip, self.random_shift)
        image_BCHW = with_channels(image_BCHW, self.channels)
        return {"image": image_BCHW, "label": self.labels_N.index_select(0, chosen_B), "index": chosen_B}


def with_channels(image_BCHW: Tensor, channels: int) -> Tensor:
    """uint8 images of one or three channels with 1 (grey as Pillow makes it of colours), 3, or 4 (opaque) of them."""
    found = image_BCHW.shape[1]
    if channels == 1 and found == 3:
        weights_C11 = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)  # ITU-R 601-2 of 65536
        return ((image_BCHW.int() * weights_C11).sum(1, keepdim=True) + 0x8000 >> 16).to(torch.uint8)
    if channels == 4:
        colour_BCHW = image_BCHW.expand(-1, 3, -1, -1)
        return torch.cat([colour_BCHW, torch.full_like(colour_BCHW[:, :1], 255)], dim=1)
    return image_BCHW.expand(-1, channels, -1, -1).contiguous()


def augment(image_BCHW: Tensor, seed: int, noise_key_B: np.ndarray, hflip: bool, random_shift: int) -> Tensor:
    """Mirror and shift whole images; each draw depends on (seed, noise key) alone.

    What a shift uncovers is black for grey images (they are drawn on black) and repeats the edge otherwise.
    """
    if not hflip and not random_shift:
        return image_BCHW
    draws_B3 = uniforms(3, _AUGMENT_STREAM, seed, noise_key_B)
    if hflip:
        mirrored_B = torch.from_numpy(draws_B3[:, 0] < 0.5)
        image_BCHW = torch.where(mirrored_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
    if random_shift:
        shift_B2 = torch.from_numpy((draws_B3[:, 1:] * (2 * random_shift + 1)).astype(np.int64) - random_shift)
        image_BCHW = _shift(image_BCHW, shift_B2)
    return image_BCHW


def _shift(image_BCHW: Tensor, shift_B2: Tensor) -> Tensor:
    _, channels, height, width = image_BCHW.shape
    if channels == 1:
        border = int(shift_B2.abs().max())
        image_BCHW = F.pad(image_BCHW, (border,) * 4)
        shift_B2 = shift_B2 + border
    row_BH = (torch.arange(height) + shift_B2[:, :1]).clamp_(0, image_BCHW.shape[2] - 1)
    column_BW = (torch.arange(width) + shift_B2[:, 1:]).clamp_(0, image_BCHW.shape[3] - 1)
    image_BCHW = image_BCHW.gather(2, row_BH[:, None, :, None].expand(-1, channels, -1, image_BCHW.shape[3]))
    return image_BCHW.gather(3, column_BW[:, None, None, :].expand(-1, channels, height, -1))


def resize_all(image_NCHW: Tensor, request: DatasetRequest) -> Tensor:
    """uint8 images at the size that is asked for, bilinear (with anti-aliasing when they get smaller): squeezed to it,
    or with dataset.resize=keep scaled until they cover it, and cut around the middle.
    """
    height, width = image_NCHW.shape[-2:]
    size = covering((height, width), request.resolution) if request.keep else request.resolution
    return middle(resized(image_NCHW, size), request.resolution)


def resized(image_NCHW: Tensor, size: Size) -> Tensor:
    """uint8 images, squeezed to a size."""
    if image_NCHW.shape[-2:] == size:
        return image_NCHW
    parts = []
    for part_BCHW in image_NCHW.split(_RESIZE_CHUNK):
        larger_BCHW = F.interpolate(part_BCHW.float(), size, mode="bilinear", antialias=True)
        parts.append(larger_BCHW.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)
