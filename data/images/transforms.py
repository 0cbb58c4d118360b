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
from dataclasses import dataclass
from typing import Optional

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

NUM_DRAWS = 5  # uniforms per image: vertical place, horizontal place, mirror, scale, place of the square
_SMALLEST_AREA = 0.75
_LARGEST_SCALE = 9 / 8
_MIRRORED_STYLES = ("imagenet", "ffhq")


@dataclass(frozen=True)
class Pipeline:
    """Crops and resizes one image. hflip None: mirror in training where the published experiments do."""

    style: str
    resolution: int
    hflip: Optional[bool] = None

    def __call__(self, image: Image.Image, draws: np.ndarray | None) -> Tensor:
        """uint8 (3, R, R) of an RGB image; `draws` are NUM_DRAWS uniforms for training, None for evaluation."""
        if self.style == "none" or (self.style == "dalle" and draws is None):
            image = F.resize(image, [self.resolution, self.resolution])
        elif self.style == "dalle":
            image = self._near_middle(image, draws)
        elif draws is not None and self.style == "ffhq":
            image = self._random_area(image, draws)
        else:
            image = self._crop(image, draws if self.style == "imagenet" else None)
        if draws is not None and self._mirrors() and draws[2] < 0.5:
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image)

    def _mirrors(self) -> bool:
        return self.style in _MIRRORED_STYLES if self.hflip is None else self.hflip

    def _crop(self, image: Image.Image, draws: np.ndarray | None) -> Image.Image:
        image = F.resize(image, [self.resolution])
        if draws is None:
            return F.center_crop(image, [self.resolution, self.resolution])
        top = int(draws[0] * (image.height - self.resolution + 1))
        left = int(draws[1] * (image.width - self.resolution + 1))
        return F.crop(image, top, left, self.resolution, self.resolution)

    def _random_area(self, image: Image.Image, draws: np.ndarray) -> Image.Image:
        area = image.width * image.height * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[3])
        side = min(round(math.sqrt(area)), image.width, image.height)
        top = int(draws[0] * (image.height - side + 1))
        left = int(draws[1] * (image.width - side + 1))
        return F.resized_crop(image, top, left, side, side, [self.resolution, self.resolution])

    def _near_middle(self, image: Image.Image, draws: np.ndarray) -> Image.Image:
        """DALL-E's crop (Ramesh et al. 2021, arXiv 2102.12092): what is cut off the longer side goes away
        at both ends, at least three eighths of it at each.
        """
        side = min(image.width, image.height)
        top, left = (int((3 + 2 * draws[4]) / 8 * (length - side)) for length in (image.height, image.width))
        largest = max(self.resolution, min(side, round(_LARGEST_SCALE * self.resolution)))
        scaled = self.resolution + int(draws[3] * (largest - self.resolution + 1))
        image = F.resized_crop(image, top, left, side, side, [scaled, scaled])
        top, left = (int(draw * (scaled - self.resolution + 1)) for draw in draws[:2])
        return F.crop(image, top, left, self.resolution, self.resolution)
