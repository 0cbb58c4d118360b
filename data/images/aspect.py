"""Sizes that keep an aspect ratio: whole numbers of pixels, as (height, width).

Axes: B batch, C channels, H W image.
"""

from __future__ import annotations

from torch import Tensor

Size = tuple[int, int]


def covering(image: Size, wanted: Size) -> Size:
    """The size that an image gets which is scaled until it just covers `wanted`: one side fits, the other may be over.

    What is wanted as a square makes the shorter side that long; the longer one is rounded down, as torchvision does.
    """
    (height, width), (rows, columns) = image, wanted
    if rows * width >= columns * height:
        return rows, max(columns, int(rows * width / height))
    return max(rows, int(columns * height / width)), columns


def fitting(image: Size, wanted: Size) -> Size:
    """The largest size of the shape of `wanted` that fits into an image."""
    (height, width), (rows, columns) = image, wanted
    if rows * width >= columns * height:
        return height, min(width, max(1, round(height * columns / rows)))
    return min(height, max(1, round(width * rows / columns))), width


def middle(image_BCHW: Tensor, wanted: Size) -> Tensor:
    """The middle of larger images."""
    (height, width), (rows, columns) = image_BCHW.shape[-2:], wanted
    top, left = (height - rows) // 2, (width - columns) // 2
    return image_BCHW[..., top : top + rows, left : left + columns]
