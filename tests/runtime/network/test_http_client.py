"""One request against servers of this machine that drip, redirect, and lead where they should not."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from runtime.network import http_client
from runtime.network.http_client import (
    CONNECTION,
    INTERNAL,
    NO_HOST,
    NO_URL,
    STATUS,
    TIMEOUT,
    TOO_LARGE,
    DownloadFailed,
    TransferLimits,
    check_url,
    download,
)

PATIENT = TransferLimits(20, 60, 1000, allow_private=True)
HURRIED = TransferLimits(20, 0.4, 1 << 30, allow_private=True)
OK = b"HTTP/1.1 200 OK\r\n"
GIVE_UP = 10.0  # what drips ends then, so that code without a limit fails instead of hanging


class Server:
    """Answers every connection with `answer(send, path)`; `paths` are those that were asked for."""

    def __init__(self, answer: Callable[[Callable[[bytes], None], str], None]) -> None:
        self.answer, self.paths, self.over, self.gave_up = answer, list[str](), threading.Event(), False
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked = connection.recv(65536).split(b" ")
            path = asked[1].decode("latin-1") if len(asked) > 1 else ""
            self.paths.append(path)
            self.answer(connection.sendall, path)

    def drip(self, send: Callable[[bytes], None], piece: bytes) -> None:
        begin = time.monotonic()
        while not self.over.wait(0.02):
            send(piece)
            if time.monotonic() - begin > GIVE_UP:
                self.gave_up = True
                return

    def close(self) -> None:
        self.over.set()
        self.listening.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[Callable[[bytes], None], str], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    http_client._opener.cache_clear()  # it has read the proxies
    yield start
    http_client._opener.cache_clear()
    for server in servers:
        server.close()


def failure(url: str, limits: TransferLimits = PATIENT) -> DownloadFailed:
    with pytest.raises(DownloadFailed) as caught:
        download(url, io.BytesIO(), limits)
    return caught.value


def whole(content: bytes, *headers: bytes) -> bytes:
    lines = (OK, b"Content-Length: %d\r\n" % len(content), *(header + b"\r\n" for header in headers))
    return b"".join(lines) + b"\r\n" + content


def test_content_over_redirects_and_in_chunks(serve):
    answers = {
        "/a%C3%A9": b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 5\r\n\r\nabcde",
        "/b": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
    }
    server, file = serve(lambda send, path: send(answers[path])), io.BytesIO()
    download(server.url("/aé"), file, PATIENT, {"User-Agent": "x"})
    assert file.getvalue() == b"abcde"
    assert server.paths == ["/a%C3%A9", "/b"]


DRIPPED = {
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "header line": (OK + b"X: ", b"a"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "content": (OK + b"Content-Length: 10000\r\n\r\n", b"a"),
    "content without a length": (OK + b"\r\n", b"a"),
    "size of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailer": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"T: a\r\n"),
}


@pytest.mark.parametrize(("first", "piece"), DRIPPED.values(), ids=DRIPPED)
def test_whatever_drips_is_cut(first, piece, serve):
    def answer(send, path):
        send(first)
        server.drip(send, piece)

    server = serve(answer)
    assert failure(server.url(), HURRIED).kind == TIMEOUT
    assert not server.gave_up


def test_a_handshake_that_drips_is_cut(serve):
    def answer(send, path):
        send(b"\x16\x03\x03\x40\x00")
        server.drip(send, b"a")

    server = serve(answer)
    assert failure(server.url(scheme="https"), HURRIED).kind == TIMEOUT
    assert not server.gave_up


def test_a_proxy_that_drips_is_cut(serve, monkeypatch):
    def answer(send, path):
        send(b"HTTP/1.1 200 ")
        server.drip(send, b"O")

    server = serve(answer)
    monkeypatch.setenv("https_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    assert failure("https://8.8.8.8/", HURRIED).kind == TIMEOUT
    assert server.paths == ["8.8.8.8:443"]
    assert not server.gave_up


def test_redirects_are_of_one_request(serve):
    def answer(send, path):
        server.over.wait(0.15)
        send(b"HTTP/1.1 302 Found\r\nLocation: %sa\r\nContent-Length: 0\r\n\r\n" % path.encode())

    server = serve(answer)
    assert failure(server.url(), HURRIED).kind == TIMEOUT
    assert len(server.paths) < 10  # where urllib gives up by itself


def test_a_name_that_is_not_found_in_time(monkeypatch):
    over = threading.Event()

    def hang(*_, flags=0, **__):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        return over.wait(GIVE_UP) and []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert failure("http://a.name/", HURRIED).kind == TIMEOUT
    over.set()


def test_the_content_of_a_redirect_is_not_read(serve):
    def answer(send, path):
        with contextlib.suppress(OSError):
            if path == "/":
                send(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 1000000000\r\n\r\n")
                server.over.wait(GIVE_UP)
            send(whole(b"there"))

    server, file = serve(answer), io.BytesIO()
    download(server.url(), file, PATIENT)
    assert file.getvalue() == b"there"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (whole(b"a" * 1001), TOO_LARGE),
        (OK + b"\r\n" + b"a" * 1001, TOO_LARGE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n7d1\r\n" + b"a" * 2001 + b"\r\n0\r\n\r\n", TOO_LARGE),
        (OK + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\n", TOO_LARGE),
        (OK + b"Content-Length: 10\r\n\r\nabc", CONNECTION),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", CONNECTION),
        (OK + b"X: a\r\n" * 200 + b"\r\n", CONNECTION),
        (b"220 mail ready\r\n", CONNECTION),
        (b"", CONNECTION),
        (b"HTTP/1.1 404 Nothing\r\nContent-Length: 0\r\n\r\n", STATUS),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", STATUS),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n", STATUS),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n\r\n", NO_URL),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", STATUS),
    ],
)
def test_kinds_of_failure(answer, kind, serve):
    assert failure(serve(lambda send, path: send(answer)).url()).kind == kind


def test_the_status_and_the_wait_that_is_asked_for(serve):
    for asked, wait in ((b"7", 7.0), (b"nan", 0.0), (b"9" * 400, 0.0), (b"-1", 0.0)):
        answer = b"HTTP/1.1 503 Busy\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % asked
        failed = failure(serve(lambda send, path, answer=answer: send(answer)).url())
        assert (failed.kind, failed.status, failed.retry_after) == (STATUS, 503, wait)


URLS = ("file:///etc/passwd", "ftp://host/x", "data:,x", "//host/x", "http://", "https://h:99999/", "http://h\n/", "")


@pytest.mark.parametrize("url", URLS)
def test_no_http_url(url):
    assert failure(url).kind == NO_URL
    with pytest.raises(DownloadFailed):
        check_url(url)


GUARDED = TransferLimits(20, 60, 1000)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "%31%32%37.0.0.1", "0"])
def test_this_machine_is_not_asked_by_any_name(host, serve):
    server = serve(lambda send, path: send(whole(b"secret")))
    assert failure(server.url(host=host), GUARDED).kind == INTERNAL
    assert server.paths == []


@pytest.mark.parametrize("host", ["8.8.8.8@127.0.0.1", "8.8.8.8:80\\@127.0.0.1", "①②⑦.⓪.⓪.①", "localhost."])
def test_names_that_read_like_another(host, serve):
    server = serve(lambda send, path: send(whole(b"secret")))
    assert failure(server.url(host=host), GUARDED).kind in (INTERNAL, NO_HOST, CONNECTION)
    assert server.paths == []


def test_ipv6_forms_of_this_machine_are_not_asked():
    for host in ("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"):
        assert failure(f"http://{host}:9/", GUARDED).kind == INTERNAL


def test_a_redirect_does_not_lead_inside(serve, monkeypatch):
    monkeypatch.setattr(http_client, "is_internal", lambda address: address != "127.0.0.1")
    answers = {"/": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:%d/x\r\nContent-Length: 0\r\n\r\n"}
    server = serve(lambda send, path: send(answers[path] % server.port))
    assert failure(server.url(), GUARDED).kind == INTERNAL
    assert server.paths == ["/"]


def _names(monkeypatch, *answers: str) -> list[str]:
    """Look-ups give these addresses, one after another; the list of those that were connected to."""
    left, connected = list(answers), []

    def getaddrinfo(host, port, flags=0, **_):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (left.pop(0), port))]

    def connect(self, address):
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return connected


def test_a_name_that_changes_is_asked_at_the_address_that_was_looked_at(monkeypatch):
    connected = _names(monkeypatch, "8.8.8.8", "127.0.0.1")
    assert failure("http://changing.name/", GUARDED).kind == CONNECTION
    assert connected == ["8.8.8.8"]


def test_a_name_with_addresses_of_both_kinds(monkeypatch):
    connected = _names(monkeypatch)
    both = [(socket.AF_INET, 0, 0, "", (address, 80)) for address in ("10.0.0.1", "8.8.8.8")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert failure("http://both.name/", GUARDED).kind == CONNECTION
    assert connected == ["8.8.8.8"]


def test_no_such_name(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert failure("http://no.name/", GUARDED).kind == NO_HOST


def test_a_proxy_of_the_user_is_asked_for_public_hosts_only(serve, monkeypatch):
    server = serve(lambda send, path: send(whole(path.encode())))
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    file = io.BytesIO()
    download("http://8.8.8.8/x", file, GUARDED)
    assert file.getvalue() == b"http://8.8.8.8/x"
    for host in ("127.0.0.2", "%31%32%37.0.0.2", "169.254.169.254"):
        assert failure(f"http://{host}:80/x", GUARDED).kind == INTERNAL
    assert server.paths == ["http://8.8.8.8/x"]
