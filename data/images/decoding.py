"""From an encoded image to its pixels: the one place that opens image files.

Axes: H W image, C channels.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.config import MAX_IMAGE_PIXELS
from data.images.decode_limits import TimedBytes, check_costs
from data.images.encoded_images import Encoded
from data.images.pixel_rule import RGB, PixelRule, Pixels, apply_rule
from runtime.errors import UserError, one_line
from runtime.processes.system import usable_cores

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""Pillow's names of what is opened, whatever a file is called: no other decoder sees a byte of it, and so no other
program is ever started (as Ghostscript is for PostScript). They are the formats of `listing.IMAGE_EXTENSIONS`.
"""
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
"""What reading and decoding raise for an image that cannot be had."""
_PILLOW = re.compile(r"PIL\.")
_MOST_THREADS = 16


def read_pixels(encoded: bytes, rule: PixelRule = RGB) -> Pixels:
    """A fully decoded image as `pixel_rule` says, within `decode_limits`.

    Raises:
        One of UNREADABLE: not a whole image, or one that is refused.
    """
    _quiet_pillow()
    try:
        with Image.open(TimedBytes(encoded), formats=FORMATS) as image:
            check_costs(image, encoded, rule.max_pixels)
            return apply_rule(image, rule)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    except (*UNREADABLE, MemoryError):
        raise
    except Exception as error:  # decoders meet anything here, and each fails in its own way
        raise ValueError(f"{type(error).__name__}: {error}") from error


def decode_rgb(encoded: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The same as RGB over white; raises the same."""
    return read_pixels(encoded, PixelRule(max_pixels=max_pixels)).image


def image_format(encoded: bytes) -> str | None:
    """Pillow's name of the format, such as `JPEG`, by the beginning of the file; OSError for one that is not opened."""
    _quiet_pillow()
    with Image.open(TimedBytes(encoded), formats=FORMATS) as image:
        return image.format


def decode_in_order(
    source: Encoded,
    indices: Iterable[int],
    threads: int | None = None,
    flattened: set[int] | None = None,
    rule: PixelRule = RGB,
) -> Iterator[tuple[int, np.ndarray | UserError]]:
    """(index, uint8 (H, W, C)) in the order of `indices`, decoded by threads.

    An image that cannot be decoded gives the error instead.

    Args:
        threads: None takes one for every core, at most 16.
        flattened: gets the indices of images whose transparency was composited over the background.
        rule: what becomes of other pixels than 8-bit RGB.
    """
    threads = threads or min(_MOST_THREADS, usable_cores())
    indices = iter(indices)
    waiting: deque[tuple[int, Future[Pixels | UserError]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for index in islice(indices, 4 * threads - len(waiting)):
                waiting.append((index, pool.submit(_decoded, source, index, rule)))
            if not waiting:
                return
            index, future = waiting.popleft()
            found = future.result()
            if isinstance(found, UserError):
                yield index, found
                continue
            if found.flattened and flattened is not None:
                flattened.add(index)
            yield index, _as_array(found)
    finally:
        # Not waited for: an abandoned generator may be collected in one of these very threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(source: Encoded, index: int, rule: PixelRule) -> Pixels | UserError:
    try:
        return read_pixels(source.read(index), rule)
    except UNREADABLE as error:
        return UserError(f"{source.name(index)} cannot be read: {one_line(error)}")


def _as_array(pixels: Pixels) -> np.ndarray:
    pixels_HWC = np.asarray(pixels.image)
    return pixels_HWC if pixels_HWC.ndim == 3 else pixels_HWC[..., None]


def _quiet_pillow() -> None:
    """Pillow's warnings name no file, and what they are about is refused, counted or harmless here.

    A filter and no `catch_warnings`: that is not safe in threads.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
