"""What decoding one image may cost, whatever its bytes say.

pixels  `PixelRule.max_pixels`, before anything is decoded
memory  about 24 bytes a pixel are made at the most; of TIFF, a tile may have no more pixels than an image
time    `MOST_SCANS` of a JPEG, every one of which goes through the whole image; and `MOST_SECONDS` of the processor

The time is that of the thread which decodes, not that of a clock: a machine that is busy or was asleep refuses nothing
which it takes otherwise. Images that come near it are millions of times slower than others of their size.
"""

from __future__ import annotations

import io
import re
import time

from PIL import Image

MOST_SCANS = 100
MOST_SECONDS = 10.0
_SMALL_BLOCK = 1 << 12  # bytes of a JPEG between two looks at the time: about a hundred scans without content
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # inside a scan: neither a stuffed byte nor a restart
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length
_TILE_SIZE = (322, 323)  # tags of TIFF
_MOST_COVERED = 8  # how often the parts of a file may cover an image: once for each channel, and some


class TimedBytes(io.BytesIO):
    """The bytes of one image. OSError for whoever still reads them when the time is over."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self.deadline = time.thread_time() + MOST_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self.deadline:
            raise OSError(f"decoding it takes more than {MOST_SECONDS:g} s of the processor")
        return super().read(size)


def check_costs(image: Image.Image, encoded: bytes, max_pixels: int) -> None:
    """Before an opened image is decoded: ValueError where it would cost too much."""
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ValueError(f"{image.width}x{image.height} pixels are more than max_image_pixels {max_pixels}")
    if image.format in ("JPEG", "MPO"):
        if encoded.count(_SCAN) > MOST_SCANS and (scans := count_scans(encoded)) > MOST_SCANS:
            raise ValueError(f"it has {scans} scans, more than {MOST_SCANS}")
        if "progressive" in image.info:
            image.decodermaxblock = _SMALL_BLOCK  # type: ignore[attr-defined]  # of files, which Image.open gives
    tags = getattr(image, "tag_v2", {})
    width, height = (int(tags.get(tag, 0)) for tag in _TILE_SIZE)
    if width * height > max_pixels:
        raise ValueError(f"tiles of {width}x{height} pixels are more than max_image_pixels {max_pixels}")
    parts = getattr(image, "tile", [])
    if sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in parts) > _MOST_COVERED * pixels:
        raise ValueError(f"its {len(parts)} parts cover its pixels more than {_MOST_COVERED} times")


def count_scans(encoded: bytes) -> int:
    """How many scans a JPEG has up to its end mark; other markers and what lies in their segments count nothing."""
    place, scans = 2, 0
    while found := _MARKER.search(encoded, place):
        marker, place = encoded[found.end() - 1], found.end()
        if marker == 0xD9:  # what follows belongs to another image or to none
            break
        scans += marker == _SCAN[1]
        if marker not in _ALONE:
            place += int.from_bytes(encoded[place : place + 2], "big")
    return scans
