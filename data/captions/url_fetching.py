"""One image from one URL, safely: http and https only, bounded in bytes, pixels and time, decoded before it is kept."""

from __future__ import annotations

import hashlib
import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from PIL import Image

from data.config import MAX_IMAGE_PIXELS
from data.images.decoding import read_pixels
from data.images.pixel_rule import PixelRule

SCHEMES = ("http", "https")
USER_AGENT = "Mozilla/5.0 (compatible; image-list-download)"
PASSING = frozenset({"timeout", "connection", "server error", "too many requests"})  # may be over on the next attempt
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the server asks for
_CHUNK = 1 << 16
_SLOWEST = 4  # a whole transfer may last that many times the time-out of one operation


@dataclass(frozen=True)
class Limits:
    """What one URL may cost. timeout in seconds, for each operation on the network; max_bytes of the file as served;
    max_pixels of the image; resize: larger images are shrunk until their shorter side is that long, 0 keeps them.
    """

    timeout: float = 10.0
    retries: int = 2
    backoff: float = 1.0
    max_bytes: int = 20_000_000
    max_pixels: int = MAX_IMAGE_PIXELS
    resize: int = 346


class FetchFailed(Exception):
    """Why there is no image: a class for the report, and how long the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; the standard one also follows ftp."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        check_url(url)
        return super().redirect_request(request, file, code, message, headers, url)


def build_opener() -> urllib.request.OpenerDirector:
    """An opener that knows no other scheme: no file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _HttpOnly,
    ):
        opener.add_handler(handler())
    return opener


def check_url(url: str) -> None:
    """FetchFailed for what is no http or https URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise FetchFailed("not an http URL")


def fetch_image(opener: urllib.request.OpenerDirector, url: str, limits: Limits) -> bytes:
    """JPEG bytes of the image at `url`, after `limits.retries` more attempts where a failure may be passing.

    Raises:
        FetchFailed: with the reason of the last attempt.
    """
    for attempt in range(limits.retries + 1):
        try:
            return as_jpeg(_download(opener, url, limits), limits)
        except FetchFailed as failure:
            if failure.reason not in PASSING or attempt == limits.retries:
                raise
            time.sleep(min(LONGEST_PAUSE, max(failure.wait, _pause(url, attempt, limits))))
    raise AssertionError("the last attempt returns or raises")


def _pause(url: str, attempt: int, limits: Limits) -> float:
    """Seconds before the next attempt: doubling, and different for every URL so that a host is not asked in bursts."""
    share = int.from_bytes(hashlib.sha256(f"{attempt} {url}".encode("utf-8", "replace")).digest()[:4], "big") / 2**32
    return limits.backoff * 2**attempt * (0.5 + share)


def _download(opener: urllib.request.OpenerDirector, url: str, limits: Limits) -> bytes:
    check_url(url)
    deadline = time.monotonic() + _SLOWEST * limits.timeout
    try:
        quoted = quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # lists hold URLs with letters beyond ASCII
        request = urllib.request.Request(quoted, headers={"User-Agent": USER_AGENT})
        with opener.open(request, timeout=limits.timeout) as response:
            return _read(response, limits.max_bytes, deadline)
    except FetchFailed:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchFailed(_status_class(error.code), _asked_wait(error.headers.get("Retry-After"))) from error
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise FetchFailed(_network_class(getattr(error, "reason", error))) from error


def _read(response: Any, max_bytes: int, deadline: float) -> bytes:
    declared = response.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise FetchFailed("too large")
    buffer = io.BytesIO()
    while chunk := response.read1(_CHUNK):
        buffer.write(chunk)
        if buffer.tell() > max_bytes:
            raise FetchFailed("too large")
        if time.monotonic() > deadline:
            raise FetchFailed("timeout")
    if declared.isdecimal() and buffer.tell() < int(declared):
        raise FetchFailed("connection")  # it ended before the whole file had come
    return buffer.getvalue()


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


def _network_class(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "timeout"
    if isinstance(reason, socket.gaierror):
        return "no such host"
    return "bad certificate" if isinstance(reason, ssl.SSLCertVerificationError) else "connection"


def _asked_wait(text: str | None) -> float:
    return float(text) if text is not None and text.strip().isdecimal() else 0.0
