"""Decoded image file -> uint8 tensor of H x W (R x R, where it is square), as the published experiments crop it.

| style    | training                                                        | evaluation                          |
|----------|-----------------------------------------------------------------|-------------------------------------|
| imagenet | scaled until it covers H x W, random H x W crop, mirrored       | the same scale, centre crop         |
| ffhq     | random part of the shape H x W with 75 % to 100 % of the area,  | scaled until it covers H x W,       |
|          | to H x W, mirrored                                              | centre crop                         |
| lsun     | scaled until it covers H x W, centre crop                       | the same                            |
| dalle    | largest part of the shape H x W around the middle, to up to 9/8 | to H x W, whatever the aspect;      |
|          | of H x W, random H x W crop                                     | with `keep` as imagenet             |
| none     | to H x W, whatever the aspect; with `keep` as lsun              | the same                            |

A square is covered by an image whose shorter side is R. `keep` is dataset.resize=keep: no image is squeezed.
The random draws are handed in, so that they can be derived from a key; axes: C channels, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data.config import CropStyle
from data.images.aspect import Size, covering, fitting
from rqstack.arguments import height_width

NUM_DRAWS = 5  # uniforms per image: vertical place, horizontal place, mirror, scale, place of the square
_SMALLEST_AREA = 0.75
_LARGEST_SCALE = 9 / 8
_COVERING: tuple[CropStyle, ...] = ("imagenet", "ffhq", "lsun")  # these resize a whole image, however long it is


@dataclass(frozen=True)
class Pipeline:
    """Crops and resizes one image.

    Args:
        style: a row of the table above.
        resolution: what images become: the side of a square, or (H, W).
        hflip: None mirrors in training where the published experiments do.
        keep: the aspect ratio of images, also where the style squeezes them.
    """

    style: CropStyle
    resolution: int | Size
    hflip: Optional[bool] = None
    keep: bool = False

    def __post_init__(self) -> None:
        assert self.style in _STYLES, f"{self.style!r} is no crop style"

    @property
    def size(self) -> Size:
        """(H, W) of what comes out."""
        return height_width("resolution", self.resolution)

    def check(self, image: Image.Image, max_pixels: int) -> None:
        """ValueError where the shape of an image would make more than `max_pixels` of it before the crop."""
        if not (self.keep or self.style in _COVERING):
            return
        height, width = covering((image.height, image.width), self.size)
        if height * width > max_pixels:
            raise ValueError(
                f"{image.width}x{image.height} becomes {height * width} pixels when it covers "
                f"{self.size[1]}x{self.size[0]}, more than max_image_pixels {max_pixels}"
            )

    def __call__(self, image: Image.Image, draws: np.ndarray | None) -> Tensor:
        """uint8 (C, H, W) of an image with C channels; `draws`: NUM_DRAWS uniforms for training, None in evaluation."""
        style = _STYLES[self.style]
        if draws is None:
            return F.pil_to_tensor(self._unsqueezed(style.evaluation)(image, self.size))
        image = self._unsqueezed(style.training)(image, self.size, draws)
        if (style.mirrored if self.hflip is None else self.hflip) and draws[2] < 0.5:
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image)

    def _unsqueezed(self, crop: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        return _centre if self.keep and crop is _squeezed else crop


def _squeezed(image: Image.Image, size: Size, draws: np.ndarray | None = None) -> Image.Image:
    return F.resize(image, list(size))


def _covered(image: Image.Image, size: Size) -> Image.Image:
    return F.resize(image, list(covering((image.height, image.width), size)))


def _centre(image: Image.Image, size: Size, draws: np.ndarray | None = None) -> Image.Image:
    return F.center_crop(_covered(image, size), list(size))


def _anywhere(image: Image.Image, size: Size, draws: np.ndarray) -> Image.Image:
    image = _covered(image, size)
    return F.crop(image, *_place((image.height, image.width), size, draws), *size)


def _place(image: Size, part: Size, draws: np.ndarray) -> Size:
    """Top and left of a random part."""
    return int(draws[0] * (image[0] - part[0] + 1)), int(draws[1] * (image[1] - part[1] + 1))


def _random_area(image: Image.Image, size: Size, draws: np.ndarray) -> Image.Image:
    (height, width), whole = size, (image.height, image.width)
    area = image.width * image.height * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[3])
    largest = fitting(whole, size)
    part = (
        min(max(1, round(math.sqrt(area * height / width))), largest[0]),
        min(max(1, round(math.sqrt(area * width / height))), largest[1]),
    )
    return F.resized_crop(image, *_place(whole, part, draws), *part, list(size))


def _near_middle(image: Image.Image, size: Size, draws: np.ndarray) -> Image.Image:
    """DALL-E's crop (Ramesh et al. 2021, arXiv 2102.12092): what is cut off the longer side goes away
    at both ends, at least three eighths of it at each.
    """
    (height, width), whole = size, (image.height, image.width)
    part = fitting(whole, size)
    top, left = (int((3 + 2 * draws[4]) / 8 * (length - kept)) for length, kept in zip(whole, part))
    largest = max(height, min(part[0], round(_LARGEST_SCALE * height)))
    rows = height + int(draws[3] * (largest - height + 1))
    scaled = (rows, max(width, round(rows * width / height)))
    image = F.resized_crop(image, top, left, *part, list(scaled))
    return F.crop(image, *_place(scaled, size, draws), *size)


@dataclass(frozen=True)
class _Style:
    """A line of the table above: image, (H, W) and draws to an image of H x W."""

    training: Callable[[Image.Image, Size, np.ndarray], Image.Image]
    evaluation: Callable[[Image.Image, Size], Image.Image]
    mirrored: bool


_STYLES: dict[CropStyle, _Style] = {
    "imagenet": _Style(_anywhere, _centre, mirrored=True),
    "ffhq": _Style(_random_area, _centre, mirrored=True),
    "lsun": _Style(_centre, _centre, mirrored=False),
    "dalle": _Style(_near_middle, _squeezed, mirrored=False),
    "none": _Style(_squeezed, _squeezed, mirrored=False),
}
