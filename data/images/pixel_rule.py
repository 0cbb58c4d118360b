"""From whatever a file holds to 8-bit pixels: the one rule, for training, scoring and the downloader alike.

| in the file                               | becomes                                                              |
|-------------------------------------------|----------------------------------------------------------------------|
| orientation tag (EXIF, XMP)               | turned upright, as a camera shows it; a damaged tag says nothing     |
| transparency: alpha, a transparent colour | composited over `background`; kept with four channels                |
| 16 bits a channel (PNG, TIFF, PPM)        | the upper 8 bits; of 12 bits likewise                                |
| floats                                    | 0..1 to 0..255; other values are refused                             |
| integers of 32 bits, or with a sign       | refused: nothing says which value is white                           |
| bilevel, grey, palette, CMYK, YCbCr, LAB  | as Pillow converts them                                              |
| several frames or pages                   | the first                                                            |

Axes: H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from data.config import BACKGROUND, CHANNELS, MAX_IMAGE_PIXELS

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
_ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 258  # a tag of TIFF


@dataclass(frozen=True)
class PixelRule:
    """What a reader gives.

    Args:
        channels: 1 grey, 3 RGB, 4 RGBA.
        background: the colour behind what is transparent, RGB.
        max_pixels: images with more are refused before anything is decoded.
    """

    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = MAX_IMAGE_PIXELS

    def __post_init__(self) -> None:
        assert self.channels in CHANNELS


RGB = PixelRule()


class Pixels(NamedTuple):
    """A decoded image, and whether something transparent in it was composited over the background."""

    image: Image.Image
    flattened: bool = False


def parse_background(text: str) -> tuple[int, int, int]:
    """The colour that a name (`white`) or `#rrggbb` means; ValueError, one line, for anything else."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise ValueError(f"dataset.background {text!r} is no colour; give a name ({BACKGROUND}) or #rrggbb") from None
    return red, green, blue


def apply_rule(image: Image.Image, rule: PixelRule) -> Pixels:
    """An opened image by the rule. Raises what decoding raises, and ValueError for what the table refuses."""
    plain = MODES[rule.channels]
    if image.mode == plain and plain != "RGBA" and image.format != "TIFF":
        image.load()  # what stands at the end of a PNG is known after it
        if image.info.keys().isdisjoint(("transparency", *_ORIENTATION_KEYS)):
            return Pixels(image)
    turn = _turn(image)
    pixels = _eight_bits(image)
    flattened = False
    if pixels.mode in _ALPHA_MODES or "transparency" in pixels.info:
        pixels = pixels.convert("RGBA")
        if rule.channels != 4 and pixels.getchannel(3).histogram()[255] < pixels.width * pixels.height:
            canvas = Image.new("RGBA", pixels.size, (*rule.background, 255))
            pixels, flattened = Image.alpha_composite(canvas, pixels), True
        if rule.channels != 4:
            pixels = pixels.convert("RGB")
    if pixels.mode == "LAB":
        pixels = pixels.convert("RGB")  # which is all that Pillow makes of it
    pixels = pixels.convert(plain)
    return Pixels(pixels if turn is None else pixels.transpose(turn), flattened)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, once its pixels are loaded (Pillow turns some TIFF files itself, then)."""
    image.load()
    if image.format != "TIFF" and image.info.keys().isdisjoint(_ORIENTATION_KEYS):
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged tag fails in any way, and says nothing about the pixels
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """A mode with 8 bits a channel; the key `transparency` of its info still holds."""
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its pixels are integers of 32 bits or with a sign, whose white is not known: make them 8 bit")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_bits(np.asarray(image), _bits(image), image.info.get("transparency"))
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # of 16 bits, as its pixels were
    return image


def _bits(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    return 12 if tags.get(_BITS_PER_SAMPLE) in (12, (12,)) else 16


def _from_floats(value_HW: np.ndarray) -> Image.Image:
    low, high = float(value_HW.min()), float(value_HW.max())
    if not (low >= 0 and high <= 1):  # also for values that are not numbers
        raise ValueError(f"its pixels are floats from {low:g} to {high:g}; floats must lie in 0..1")
    return Image.fromarray(np.rint(value_HW * 255).astype(np.uint8))


def _upper_bits(value_HW: np.ndarray, bits: int, transparent: object) -> Image.Image:
    pixels = Image.fromarray((value_HW >> (bits - 8)).astype(np.uint8))
    if isinstance(transparent, int):
        pixels.putalpha(Image.fromarray(np.where(value_HW == transparent, 0, 255).astype(np.uint8)))
    return pixels
