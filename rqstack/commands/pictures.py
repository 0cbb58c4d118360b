"""Image files in, PNG files out, with Pillow, where it is installed.

Legend: B batch, C channels, H W image of the model, h w grid of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # Pillow's names of them: no other decoder is tried
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
WHITE = 128  # grey value from which a pixel of a mask counts
SMALLEST_SIDE = 128  # of a picture in a sheet; smaller ones are enlarged by repeating pixels
GAP = 2


def import_pillow() -> Any:
    """The package PIL with what is used of it; ValueError where it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageColor
        import PIL.ImageOps
    except ImportError as error:
        raise ValueError(
            "reading and writing pictures needs the package pillow: pip install rqstack[images]"
        ) from error
    return PIL


def open_picture(path: Path, channels: int, background: str = "white") -> Image:
    """A whole decoded file, upright, with 1, 3 or 4 channels; what is transparent lies over the background.

    Raises:
        ValueError: naming the file, where it cannot be read.
    """
    pillow = import_pillow()
    try:
        with pillow.Image.open(path, formats=FORMATS) as file:
            picture = pillow.ImageOps.exif_transpose(file)
            if channels != 4 and ("A" in picture.mode or "transparency" in picture.info):
                picture = picture.convert("RGBA")
                colour = pillow.ImageColor.getcolor(background, "RGBA")
                picture = pillow.Image.alpha_composite(pillow.Image.new("RGBA", picture.size, colour), picture)
            elif picture.mode == "I" or picture.mode.startswith(("I;", "F")):
                raise ValueError(f"its pixels are of mode {picture.mode}: make them 8 bit")
            return picture.convert(MODES[channels])
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    except (OSError, SyntaxError, ValueError, pillow.Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def as_tensor(picture: Image, wanted: tuple[int, int]) -> Tensor:
    """A picture as stage 1 sees it: scaled until it covers (H, W), centre crop, (C, H, W) in [-1, 1]."""
    pillow = import_pillow()
    height, width = wanted
    if height * picture.width >= width * picture.height:
        size = (max(width, height * picture.width // picture.height), height)
    else:
        size = (width, max(height, width * picture.height // picture.width))
    if size != picture.size:
        picture = picture.resize(size, pillow.Image.Resampling.BILINEAR)
    left, top = int(round((size[0] - width) / 2)), int(round((size[1] - height) / 2))
    return from_bytes(_bytes_of(picture.crop((left, top, left + width, top + height))))


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], of any shape."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(image: Tensor) -> Tensor:
    """Values in [-1, 1], others clipped, -> the nearest uint8, on the CPU; of any shape."""
    return image.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def white_cells(mask: Image, size: tuple[int, int], wanted: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Which cells (h, w) of the codes a mask paints: those of which any pixel is white, in the crop of its image.

    Args:
        mask: grey.
        size: (width, height) of the image that it belongs to.
        wanted: (H, W).
        grid: (h, w).

    Raises:
        ValueError: of another size than the image.
    """
    if mask.size != size:
        raise ValueError(f"the mask is {mask.width}x{mask.height}, its image {size[0]}x{size[1]}")
    (width, height), (rows, columns) = size, wanted
    if rows * width >= columns * height:  # the largest part of the shape that is wanted
        width = min(width, max(1, round(height * columns / rows)))
    else:
        height = min(height, max(1, round(width * rows / columns)))
    left, top = (mask.width - width) // 2, (mask.height - height) // 2
    white_HW = (_bytes_of(mask.crop((left, top, left + width, top + height)))[0] >= WHITE).float()
    return F.adaptive_max_pool2d(white_HW[None, None], grid)[0, 0] > 0


def _bytes_of(picture: Image) -> Tensor:
    """uint8 (C, H, W)."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1)


def save_picture(image_CHW: Tensor, path: Path) -> None:
    """An image in [-1, 1] as a PNG file."""
    pillow = import_pillow()
    pixels = to_bytes(image_CHW)
    mode, (height, width) = MODES[len(pixels)], pixels.shape[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.Image.frombytes(mode, (width, height), pixels.permute(1, 2, 0).contiguous().numpy().tobytes()).save(path)


def save_sheet(images: Sequence[Tensor], path: Path, columns: int) -> None:
    """Images (C, H, W) in [-1, 1] side by side and below each other, on white."""
    height, width = images[0].shape[-2:]
    factor = -(-SMALLEST_SIDE // min(height, width))
    large = [image.repeat_interleave(factor, -1).repeat_interleave(factor, -2).cpu() for image in images]
    channels, step_y, step_x = len(images[0]), height * factor + GAP, width * factor + GAP
    rows = -(-len(images) // columns)
    sheet = torch.ones(channels, rows * step_y + GAP, min(columns, len(images)) * step_x + GAP)
    for number, image in enumerate(large):
        top, left = GAP + number // columns * step_y, GAP + number % columns * step_x
        sheet[:, top : top + step_y - GAP, left : left + step_x - GAP] = image
    save_picture(sheet, path)
