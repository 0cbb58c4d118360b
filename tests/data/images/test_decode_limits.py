"""What decoding may cost: files of some hundred bytes that would take minutes or gigabytes are unreadable, at once."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data.captions.url_fetching import FetchFailed, Limits, as_jpeg
from data.images import decode_limits
from data.images.decode_limits import MOST_SCANS, count_scans
from data.images.decoding import UNREADABLE, decode_rgb
from tests.faults.evil_files import tiff_of

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def jpeg(side=64, *, progressive=True, more_scans=0):
    """A JPEG whose last scan stands there `more_scans` times more."""
    file = io.BytesIO()
    Image.fromarray(NOISE).resize((side, side)).save(file, "JPEG", progressive=progressive)
    whole = file.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * more_scans + whole[-2:]


def rle_bitmap(width, height):
    """A bitmap of two bytes a row, whose other pixels Pillow's decoder adds one by one."""
    header = struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + header + info + bytes(1024) + b"\x01\x01\x00\x00" * height


@pytest.fixture
def refused(monkeypatch):
    """What is said of an image that no decoder may finish."""

    def say(encoded):
        with pytest.raises(UNREADABLE) as raised:
            decode_rgb(encoded)
        return str(raised.value)

    return say


def test_scans_are_counted_up_to_the_end_of_the_image():
    assert count_scans(jpeg(progressive=False)) == 1
    assert count_scans(jpeg()) == 10
    assert count_scans(jpeg(more_scans=7)) == 17
    film = np.random.default_rng(1).integers(0, 256, 4_000_000, dtype=np.uint8).tobytes()
    moving = jpeg() + film  # as telephones keep a film behind a photograph
    assert moving.count(b"\xff\xda") > 50
    assert count_scans(moving) == 10
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 500)
    assert count_scans(file.getvalue()) == 1
    assert decode_rgb(file.getvalue()).size == (64, 64)
    assert count_scans(b"") == count_scans(b"\xff\xd8") == 0


def test_a_jpeg_of_more_scans_than_any_encoder_writes(refused):
    assert decode_rgb(jpeg(more_scans=MOST_SCANS - 10)).size == (64, 64)
    assert refused(jpeg(more_scans=MOST_SCANS - 9)) == "it has 101 scans, more than 100"


def test_time_is_that_of_the_processor_and_looked_at_while_decoding(refused, monkeypatch):
    monkeypatch.setattr(decode_limits, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(decode_limits, "MOST_SCANS", 10**6)
    start = time.thread_time()
    for encoded in (jpeg(1500, more_scans=3000), rle_bitmap(1500, 1500), b"P3 1500 1500 255 " + b"1 " * 6_750_000):
        assert refused(encoded) == "decoding it takes more than 0.05 s of the processor"
    assert time.thread_time() - start < 30  # of about a minute


def test_a_machine_that_was_asleep_refuses_nothing(monkeypatch):
    monkeypatch.setattr(decode_limits, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert decode_rgb(jpeg()).size == (64, 64)


def test_a_tile_is_no_larger_than_an_image_may_be(refused):
    tiles = [(322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 100)]
    content = zlib.compress(bytes(1000)).ljust(100, b"\0")
    assert refused(tiff_of(16, 16, tiles, compression=8, content=content)).startswith("tiles of 40000x40000 pixels")


def test_strips_that_cover_an_image_many_times(refused):
    offsets = struct.pack("<I", 8) * 40
    content = bytes(64 * 64) + offsets + struct.pack("<I", 64 * 64) * 40
    strips = [(273, 4, 40, 8 + 64 * 64), (278, 4, 1, 63), (279, 4, 40, 8 + 64 * 64 + len(offsets))]
    line = refused(tiff_of(64, 64, strips, content=content))
    assert line == "its 40 parts cover its pixels more than 8 times"


@pytest.mark.parametrize("form", ["GIF", "ICO", "TGA"])
def test_the_downloader_opens_the_same_formats(form):
    """It took GIF as well."""
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, form)
    with pytest.raises(FetchFailed, match="not an image"):
        as_jpeg(file.getvalue(), Limits())


def test_the_downloader_keeps_the_limits():
    assert as_jpeg(jpeg(), Limits())
    with pytest.raises(FetchFailed, match="not an image"):
        as_jpeg(jpeg(more_scans=200), Limits())
