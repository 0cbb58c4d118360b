"""Images that a user names, as a stage-1 model sees them: one pixel rule, scaled until they cover it, centre crop.

Legend: C channels, H W image of the model, h w grid of codes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.config import MAX_IMAGE_BYTES
from data.images.aspect import Size, fitting, middle
from data.images.decoding import UNREADABLE, read_pixels
from data.images.encoded_images import checked
from data.images.listing import list_images
from data.images.pixel_rule import PixelRule, parse_background
from data.images.transforms import Pipeline
from rqstack.archive import read_archive
from runtime.errors import UserError, one_line

PAINTED = 128  # grey value from which a pixel of a mask counts


def rule_of(checkpoint: Path, channels: int) -> PixelRule:
    """How a stage-1 checkpoint's training read its images, as far as its config says."""
    dataset = (read_archive(checkpoint, wanted=()).config or {}).get("dataset") or {}
    background = dataset.get("background")
    if background is None:
        return PixelRule(channels)
    return PixelRule(channels, parse_background(background))


def read_image(path: Path, rule: PixelRule, size: Size, name: str | None = None) -> Tensor:
    """One file as uint8 (C, H, W), of this size, within the limits of data sets.

    Args:
        name: what a message calls it; None: its path.

    Raises:
        UserError: naming the file, where it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            pixels = read_pixels(checked(file.read(MAX_IMAGE_BYTES + 1)), rule).image
        pipeline = Pipeline("imagenet", size)
        pipeline.check(pixels, rule.max_pixels)
        return pipeline(pixels, None)
    except UNREADABLE as error:
        raise UserError(f"{name or path} cannot be read as an image: {one_line(error)}") from error


def image_paths(source: Path) -> list[Path]:
    """The file itself, or the images of a folder in order.

    Raises:
        UserError: nothing there.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} is no file and no folder")
    paths = [source / name for name in list_images(source)]
    if not paths:
        raise UserError(f"{source} holds no images")
    return paths


def painted_cells(path: Path, image_size: Size, size: Size, grid: Size) -> Tensor:
    """Which cells (h, w) of the codes a mask paints: those of which any pixel is white, in the crop of the image.

    Args:
        path: a mask, white where something new is wanted.
        image_size: (height, width) of the image that it belongs to.
        size: (H, W) that the model takes.
        grid: (h, w).

    Raises:
        UserError: unreadable, or of another size than the image.
    """
    try:
        mask = read_pixels(path.read_bytes(), PixelRule(channels=1, background=(0, 0, 0))).image
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a mask: {one_line(error)}") from error
    if (mask.height, mask.width) != image_size:
        raise UserError(f"the mask {path} is {mask.width}x{mask.height}, its image {image_size[1]}x{image_size[0]}")
    pixels_HW = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(image_size)
    painted_HW = (middle(pixels_HW, fitting(image_size, size)) >= PAINTED).float()
    return F.adaptive_max_pool2d(painted_HW[None, None], grid)[0, 0] > 0


def image_size(path: Path) -> Size:
    """(height, width), turned as the reader turns it.

    Raises:
        UserError: unreadable.
    """
    try:
        width, height = read_pixels(path.read_bytes()).image.size
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {one_line(error)}") from error
    return height, width
