"""One image from one URL, safely: bounded in bytes, pixels and time, from outside only, decoded before it is kept."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass

from PIL import Image

from data.config import MAX_IMAGE_PIXELS
from data.images.decoding import read_pixels
from data.images.pixel_rule import PixelRule
from runtime.network.http_client import STATUS, DownloadFailed, TransferLimits, download

USER_AGENT = "Mozilla/5.0 (compatible; image-list-download)"
PASSING = frozenset({"timeout", "connection", "server error", "too many requests"})  # may be over on the next attempt
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the server asks for
_SLOWEST = 4  # a whole request may last that many times the time-out of one operation


@dataclass(frozen=True)
class Limits:
    """What one URL may cost. timeout in seconds, for each operation on the network (four times that for a whole
    attempt); max_bytes of the file as served; max_pixels of the image; resize: larger images are shrunk until their
    shorter side is that long, 0 keeps them; allow_private: addresses of this machine and its network may be asked.
    """

    timeout: float = 10.0
    retries: int = 2
    backoff: float = 1.0
    max_bytes: int = 20_000_000
    max_pixels: int = MAX_IMAGE_PIXELS
    resize: int = 346
    allow_private: bool = False


class FetchFailed(Exception):
    """Why there is no image: a class for the report, and how long the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def fetch_image(url: str, limits: Limits) -> bytes:
    """JPEG bytes of the image at `url`, after `limits.retries` more attempts where a failure may be passing.

    Raises:
        FetchFailed: with the reason of the last attempt.
    """
    for attempt in range(limits.retries + 1):
        try:
            return as_jpeg(_download(url, limits), limits)
        except FetchFailed as failure:
            if failure.reason not in PASSING or attempt == limits.retries:
                raise
            time.sleep(min(LONGEST_PAUSE, max(failure.wait, _pause(url, attempt, limits))))
    raise AssertionError("the last attempt returns or raises")


def _pause(url: str, attempt: int, limits: Limits) -> float:
    """Seconds before the next attempt: doubling, and different for every URL so that a host is not asked in bursts."""
    share = int.from_bytes(hashlib.sha256(f"{attempt} {url}".encode("utf-8", "replace")).digest()[:4], "big") / 2**32
    return limits.backoff * 2**attempt * (0.5 + share)


def _download(url: str, limits: Limits) -> bytes:
    content = io.BytesIO()
    total = _SLOWEST * limits.timeout
    transfer = TransferLimits(limits.timeout, total, limits.max_bytes, limits.allow_private)
    try:
        download(url, content, transfer, {"User-Agent": USER_AGENT})
    except DownloadFailed as failure:
        reason = _status_class(failure.status) if failure.kind == STATUS else failure.kind
        raise FetchFailed(reason, failure.retry_after) from failure
    return content.getvalue()


def as_jpeg(content: bytes, limits: Limits) -> bytes:
    """The image as a JPEG, shrunk to `limits.resize`; FetchFailed when it is none, or has too many pixels."""
    try:
        image = read_pixels(content, PixelRule(max_pixels=limits.max_pixels)).image
        shorter = min(image.size)
        if 0 < limits.resize < shorter:
            size = [max(1, round(side * limits.resize / shorter)) for side in image.size]
            image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=95)
    except Exception as error:  # decoders meet anything here, and each fails in its own way
        raise FetchFailed("not an image") from error
    return encoded.getvalue()


def _status_class(status: int) -> str:
    if status in (404, 410):
        return "gone"
    if status in (401, 403, 451):
        return "forbidden"
    if status == 429:
        return "too many requests"
    return "server error" if status >= 500 else "other status"
