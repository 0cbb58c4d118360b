"""urllib's HTTP client with a limit on the whole request and a look at every address that it connects to.

No client of Python's ecosystem that works without an event loop has the former: their time limits are of single
operations, so that a server that sends a byte now and then holds them for hours. Here a timer cuts the connection,
whatever is being read at that moment: a look-up, a handshake, header lines, sizes of chunks, a redirect.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote, urlsplit

from runtime.network.addresses import Place, is_internal, look_up

SCHEMES = ("http", "https")
TIMEOUT, CONNECTION, NO_HOST, CERTIFICATE = "timeout", "connection", "no such host", "bad certificate"
INTERNAL, TOO_LARGE, NO_URL, STATUS = "internal address", "too large", "not an http URL", "status"
_CHUNK = 1 << 16


@dataclass(frozen=True)
class TransferLimits:
    """What one request may cost.

    Attributes:
        operation_seconds: of waiting for the network at a time.
        total_seconds: from the look-up of the name to the last byte, redirects included.
        max_bytes: of the content.
        allow_private: whether internal addresses may be connected to.
    """

    operation_seconds: float
    total_seconds: float
    max_bytes: int
    allow_private: bool = False


class DownloadFailed(Exception):
    """Why there is no content.

    Attributes:
        kind: one of the names above.
        status: of the answer, where the kind is `status`.
        retry_after: seconds that the server asks to wait, or 0.
    """

    def __init__(self, kind: str, text: str = "", status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(text or kind)
        self.kind, self.status, self.retry_after = kind, status, retry_after


class InternalAddress(OSError):
    """A host that stands for nothing but internal addresses."""


def check_url(url: str) -> None:
    """DownloadFailed for what is no http or https URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise DownloadFailed(NO_URL)


def download(url: str, file: IO[bytes], limits: TransferLimits, headers: Mapping[str, str] | None = None) -> None:
    """Writes what is at `url` to `file`, of which a part is written when it fails.

    Redirects to http and https are followed. The proxies of the environment are used; what a proxy connects to is its
    own affair, but a host that is internal as seen from here is not asked for.

    Raises:
        DownloadFailed: it is no http URL, cannot be had within the limits, or is an internal address. OSError: `file`.
    """
    check_url(url)
    with _Transfer(limits) as transfer:
        quoted = quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # lists hold URLs with letters beyond ASCII
        request = _Request(quoted, transfer, dict(headers or {}))
        try:
            response = _opener().open(request, timeout=transfer.wait_seconds())
        except Exception as error:
            raise transfer.failure(error) from error
        with response:
            _copy(response, file, transfer)


def _copy(response: Any, file: IO[bytes], transfer: _Transfer) -> None:
    declared = response.headers.get("Content-Length", "")
    length = int(declared[-20:]) if declared.isdecimal() else None
    if length is not None and len(declared.lstrip("0")) > 19:  # Python refuses to read numbers of thousands of digits
        raise DownloadFailed(TOO_LARGE)
    written = 0
    if length is not None and length > transfer.limits.max_bytes:
        raise DownloadFailed(TOO_LARGE)
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except Exception as error:
            raise transfer.failure(error) from error
        if transfer.over:  # the end of the stream may be the timer's doing
            raise DownloadFailed(TIMEOUT)
        if not chunk:
            break
        written += len(chunk)
        if written > transfer.limits.max_bytes:
            raise DownloadFailed(TOO_LARGE)
        file.write(chunk)
    if length is not None and written < length:
        raise DownloadFailed(CONNECTION, f"it ended after {written} of {length} bytes")


class _Transfer:
    """One request under way, with its redirects: connects, and cuts the connections when its time is over."""

    def __init__(self, limits: TransferLimits) -> None:
        self.limits, self.over = limits, False
        self._deadline = time.monotonic() + limits.total_seconds
        self._lock, self._connections = threading.Lock(), list[socket.socket]()
        self._timer = threading.Timer(limits.total_seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Transfer:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def wait_seconds(self) -> float:
        """For one operation."""
        left = self._deadline - time.monotonic()
        if self.over or left <= 0:
            raise TimeoutError("the time of the whole request is over")
        return min(self.limits.operation_seconds, left)

    def connect(self, host: str, port: int, beyond_proxy: str | None) -> socket.socket:
        """A connection to a host, at an address that was looked at.

        Args:
            beyond_proxy: the host that is meant where `host` is a proxy, which the user has chosen.

        Raises:
            OSError: nobody there, or `InternalAddress`.
        """
        if beyond_proxy is not None:
            with suppress(socket.gaierror):  # such a name may be for the proxy alone to know
                self._allowed(beyond_proxy, look_up(beyond_proxy, port, self.wait_seconds()))
        places = look_up(host, port, self.wait_seconds())
        failure: OSError = socket.gaierror(f"{host} has no address")
        for place in self._allowed(host, places) if beyond_proxy is None else places:
            try:
                return self._connected(place)
            except OSError as error:
                failure = error
        raise failure

    def _allowed(self, host: str, places: list[Place]) -> list[Place]:
        if self.limits.allow_private:
            return places
        allowed = [place for place in places if not is_internal(place.address[0])]
        if places and not allowed:
            raise InternalAddress(f"{host} is the internal address {places[0].address[0]}")
        return allowed

    def _connected(self, place: Place) -> socket.socket:
        connection = socket.socket(place.family, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.wait_seconds())
            with self._lock:  # a copy: what is done to the connection by TLS does not keep it from being cut
                if self.over:
                    raise TimeoutError
                self._connections.append(connection.dup())
            connection.connect(place.address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _cut(self) -> None:
        with self._lock:
            self.over = True
            for connection in self._connections:
                with suppress(OSError):  # it has ended already, or is not open yet
                    connection.shutdown(socket.SHUT_RDWR)

    def failure(self, error: Exception) -> DownloadFailed:
        """What an error of urllib and below means; an error of ours is raised as it is."""
        if isinstance(error, DownloadFailed):
            return error
        if self.over:
            return DownloadFailed(TIMEOUT)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            asked = error.headers.get("Retry-After") or ""
            wait = float(asked) if asked.strip().isdecimal() and len(asked) < 10 else 0.0
            return DownloadFailed(STATUS, f"{error.code} {error.reason}", error.code, wait)
        reason = getattr(error, "reason", error)
        if not isinstance(error, (urllib.error.URLError, OSError, http.client.HTTPException, ValueError)):
            raise error
        return DownloadFailed(_kind_of(reason), str(reason))


def _kind_of(reason: object) -> str:
    table = {
        TimeoutError: TIMEOUT,
        InternalAddress: INTERNAL,
        socket.gaierror: NO_HOST,
        ssl.SSLCertVerificationError: CERTIFICATE,
    }
    return next((kind for error, kind in table.items() if isinstance(reason, error)), CONNECTION)


class _Request(urllib.request.Request):
    """A request, or a redirect of it, that knows its transfer."""

    def __init__(self, url: str, transfer: _Transfer, headers: dict[str, str]) -> None:
        super().__init__(url, headers=headers)
        self.transfer = transfer
        self.asked_for = self.host  # a proxy takes its place there

    def connection(self, kind: type[http.client.HTTPConnection], host: str, **options: Any) -> Any:
        """An unopened connection of http.client's that is opened by the transfer."""
        beyond_proxy = None if self.asked_for == self.host else urlsplit(f"//{self.asked_for}").hostname or ""
        connection = kind(host, **options)
        opened = partial(self._connect, beyond_proxy=beyond_proxy)
        connection._create_connection = opened  # type: ignore[attr-defined]  # http.client's own way to replace it
        return connection

    def _connect(self, address: tuple[str, int], *_: Any, beyond_proxy: str | None) -> socket.socket:
        return self.transfer.connect(*address, beyond_proxy)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Both schemes over connections of the transfer."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: Any) -> Any:
        return self.do_open(partial(request.connection, http.client.HTTPConnection), request)

    def https_open(self, request: Any) -> Any:
        return self.do_open(partial(request.connection, http.client.HTTPSConnection), request, context=_tls())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https only, within the same transfer; the standard one also follows ftp."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        file.close()  # urllib would read its content, however long, and throw it away
        check_url(url)
        redirected = super().redirect_request(request, file, code, message, headers, url)
        if redirected is None:
            return None
        return _Request(redirected.full_url, request.transfer, dict(redirected.headers))


@cache
def _tls() -> ssl.SSLContext:
    """The certificates of this system, read once."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


@cache
def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows no other scheme: no file:, ftp: or data:. The proxies are those of its first use."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        _Handler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener
