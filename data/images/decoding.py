"""From an encoded image to its pixels: the one place that decodes image files.

Axes: H W image, C channels.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.config import MAX_IMAGE_PIXELS
from data.images.encoded_images import Encoded
from runtime.errors import UserError, one_line

UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
"""What reading and decoding raise for an image that cannot be had."""
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MOST_THREADS = 16


def decode_rgb(encoded: bytes, max_pixels: int = MAX_IMAGE_PIXELS, *, deep: bool = True) -> Image.Image:
    """A fully decoded image, as Pillow converts it to RGB; the orientation tag of a camera is ignored.

    Args:
        max_pixels: more are refused before anything is decoded.
        deep: take images with more than 8 bits a channel, which Pillow cuts off at 255.

    Raises:
        One of UNREADABLE: not a whole image, or one that is refused.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels are more than max_image_pixels {max_pixels}")
        if not deep and image.mode in _DEEP_MODES:
            raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}): convert it first")
        return image.convert("RGB")


def image_format(encoded: bytes) -> str | None:
    """Pillow's name of the format, such as `JPEG`, from the beginning of the file."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.format


def decode_in_order(
    source: Encoded, indices: Iterable[int], threads: int | None = None
) -> Iterator[tuple[int, np.ndarray | UserError]]:
    """(index, uint8 (H, W, 3)) in the order of `indices`, decoded by threads.

    An image that cannot be decoded, or has more than 8 bits a channel, gives the error instead.

    Args:
        threads: None takes one for every core, at most 16.
    """
    threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    indices = iter(indices)
    waiting: deque[tuple[int, Future[np.ndarray | UserError]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for index in islice(indices, 4 * threads - len(waiting)):
                waiting.append((index, pool.submit(_decoded, source, index)))
            if not waiting:
                return
            index, future = waiting.popleft()
            yield index, future.result()
    finally:
        # Not waited for: an abandoned generator may be collected in one of these very threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(source: Encoded, index: int) -> np.ndarray | UserError:
    try:
        return np.asarray(decode_rgb(source.read(index), deep=False))
    except UNREADABLE as error:
        return UserError(f"{source.name(index)} cannot be read: {one_line(error)}")
