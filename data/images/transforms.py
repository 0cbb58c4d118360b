"""Decoded image file -> square uint8 tensor, as the published experiments crop it.

| style    | training                                                        | evaluation                          |
|----------|-----------------------------------------------------------------|-------------------------------------|
| imagenet | short side to R, random R x R crop, mirrored                    | short side to R, centre crop        |
| ffhq     | random square of 75 % to 100 % of the area, to R x R, mirrored  | short side to R, centre crop        |
| lsun     | short side to R, centre crop                                    | the same                            |
| dalle    | largest square around the middle, to a side up to 9/8 R, random | to R x R, whatever the aspect       |
|          | R x R crop                                                      |                                     |
| none     | to R x R, whatever the aspect                                   | the same                            |

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

NUM_DRAWS = 5  # uniforms per image: vertical place, horizontal place, mirror, scale, place of the square
_SMALLEST_AREA = 0.75
_LARGEST_SCALE = 9 / 8
_SHORT_SIDE: tuple[CropStyle, ...] = ("imagenet", "ffhq", "lsun")  # these resize a whole image, however long it is


@dataclass(frozen=True)
class Pipeline:
    """Crops and resizes one image. hflip None: mirror in training where the published experiments do."""

    style: CropStyle
    resolution: int
    hflip: Optional[bool] = None

    def __post_init__(self) -> None:
        assert self.style in _STYLES, f"{self.style!r} is no crop style"

    def check(self, image: Image.Image, max_pixels: int) -> None:
        """ValueError where the shape of an image would make more than `max_pixels` of it before the crop."""
        shorter, longer = sorted(image.size)
        if self.style in _SHORT_SIDE and (made := self.resolution * (longer * self.resolution // shorter)) > max_pixels:
            raise ValueError(
                f"{image.width}x{image.height} becomes {made} pixels when its shorter side is made {self.resolution}, "
                f"more than max_image_pixels {max_pixels}"
            )

    def __call__(self, image: Image.Image, draws: np.ndarray | None) -> Tensor:
        """uint8 (C, R, R) of an image with C channels; `draws`: NUM_DRAWS uniforms for training, None in evaluation."""
        style = _STYLES[self.style]
        if draws is None:
            return F.pil_to_tensor(style.evaluation(image, self.resolution))
        image = style.training(image, self.resolution, draws)
        if (style.mirrored if self.hflip is None else self.hflip) and draws[2] < 0.5:
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image)


def _squeezed(image: Image.Image, resolution: int, draws: np.ndarray | None = None) -> Image.Image:
    return F.resize(image, [resolution, resolution])


def _centre(image: Image.Image, resolution: int, draws: np.ndarray | None = None) -> Image.Image:
    return F.center_crop(F.resize(image, [resolution]), [resolution, resolution])


def _anywhere(image: Image.Image, resolution: int, draws: np.ndarray) -> Image.Image:
    image = F.resize(image, [resolution])
    top = int(draws[0] * (image.height - resolution + 1))
    left = int(draws[1] * (image.width - resolution + 1))
    return F.crop(image, top, left, resolution, resolution)


def _random_area(image: Image.Image, resolution: int, draws: np.ndarray) -> Image.Image:
    area = image.width * image.height * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[3])
    side = min(round(math.sqrt(area)), image.width, image.height)
    top = int(draws[0] * (image.height - side + 1))
    left = int(draws[1] * (image.width - side + 1))
    return F.resized_crop(image, top, left, side, side, [resolution, resolution])


def _near_middle(image: Image.Image, resolution: int, draws: np.ndarray) -> Image.Image:
    """DALL-E's crop (Ramesh et al. 2021, arXiv 2102.12092): what is cut off the longer side goes away
    at both ends, at least three eighths of it at each.
    """
    side = min(image.width, image.height)
    top, left = (int((3 + 2 * draws[4]) / 8 * (length - side)) for length in (image.height, image.width))
    largest = max(resolution, min(side, round(_LARGEST_SCALE * resolution)))
    scaled = resolution + int(draws[3] * (largest - resolution + 1))
    image = F.resized_crop(image, top, left, side, side, [scaled, scaled])
    top, left = (int(draw * (scaled - resolution + 1)) for draw in draws[:2])
    return F.crop(image, top, left, resolution, resolution)


@dataclass(frozen=True)
class _Style:
    """A line of the table above: image, R and draws to an image of R x R."""

    training: Callable[[Image.Image, int, np.ndarray], Image.Image]
    evaluation: Callable[[Image.Image, int], Image.Image]
    mirrored: bool


_STYLES: dict[CropStyle, _Style] = {
    "imagenet": _Style(_anywhere, _centre, mirrored=True),
    "ffhq": _Style(_random_area, _centre, mirrored=True),
    "lsun": _Style(_centre, _centre, mirrored=False),
    "dalle": _Style(_near_middle, _squeezed, mirrored=False),
    "none": _Style(_squeezed, _squeezed, mirrored=False),
}
