"""Downloading a list of URLs from a server in this process: what is kept, refused, retried, resumed and reported."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.captions.url_fetching import FetchFailed, Limits, fetch_image
from data.download_cc3m import Download, main, parse, read_url_list
from runtime.errors import UserError

FAST = Limits(
    timeout=20, retries=1, backoff=0.01, max_bytes=50_000, max_pixels=1_000_000, resize=16, allow_private=True
)


def _encoded(value=100, size=(40, 24), kind="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


def server_hangs(server):
    """No answer until the test is over."""
    server.over.wait(60)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(self.path.split("?")[0], server.asked[self.path])

    def _wait(self):
        """Counts who waits at once; over before the answer, after which the asker may be back at any moment."""
        server = self.server
        with server.lock:
            server.active += 1
            server.most = max(server.most, server.active)
        time.sleep(0.1)
        with server.lock:
            server.active -= 1

    def _answer(self, path, time_asked):
        if path.startswith("/slow"):
            self._wait()
        if path.startswith("/status/"):
            return self._send(int(path.split("/")[2]), b"")
        if path == "/flaky" and time_asked == 1:
            return self._send(503, b"", {"Retry-After": "0"})
        if path == "/hang":
            return server_hangs(self.server)
        if path == "/to-file":
            return self._send(302, b"", {"Location": "file:///etc/hostname"})
        if path == "/to-ftp":
            return self._send(302, b"", {"Location": "ftp://127.0.0.1:9/x.jpg"})
        if path == "/moved":
            return self._send(301, b"", {"Location": "/ok/moved"})
        if path == "/cut":
            return self._send(200, _encoded()[:60], {"Content-Length": "5000"})
        if path == "/text":
            return self._send(200, b"<html>no image</html>")
        if path == "/huge":
            return self._send(200, b"x" * 60_000)
        if path == "/endless":
            return self._send(200, b"x" * 60_000, {"Content-Length": None})
        if path == "/bomb":
            return self._send(200, _encoded(0, (2000, 1000)))
        return self._send(200, _encoded(sum(path.encode()) % 256, mode="P" if path == "/palette" else "RGB"))

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.asked, httpd.lock, httpd.active, httpd.most = Counter(), threading.Lock(), 0, 0
        httpd.over = threading.Event()
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield httpd
        httpd.over.set()
        httpd.shutdown()
        thread.join()


def _list(path, lines):
    path.write_text("".join(f"{caption}\t{url}\n" for caption, url in lines), encoding="utf-8")
    return path


def _run(path, out, *flags, allow_private=True):
    flags = [*flags, *(["--allow-private"] if allow_private else [])]
    fast = ["--timeout", "20", "--backoff", "0.01", "--retries", "1", "--resize", "16", "--max-bytes", "50000"]
    main(parse([str(path), "--out", str(out), "--split", "train", *fast, *map(str, flags)]))
    return json.loads((out / "train_report.json").read_text())


def test_images_lists_and_report(server, tmp_path, capsys):
    paths = ["/ok/1", "/status/404", "/ok/é?a=b c%20", "/status/403", "/text", "/flaky", "/moved", "/palette", "/ok/1"]
    urls = [server.url + path.replace(" ", "") for path in paths] + ["file:///etc/hostname", "ftp://127.0.0.1/x.jpg"]
    lines = [(f"caption {number}  of\x0bit", url) for number, url in enumerate(urls)]
    report = _run(_list(tmp_path / "list.tsv", lines), tmp_path / "out", "--workers", 4)
    assert (report["lines"], report["urls"], report["pairs"], report["alive"], report["not tried"]) == (11, 10, 6, 5, 0)
    assert report["dead"] == {"not an http URL": 2, "gone": 1, "forbidden": 1, "not an image": 1}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "6 of 11 pairs; 5 of 10 URLs alive" and printed[1] == "        2 not an http URL"
    written = [line.split("\t") for line in (tmp_path / "out" / "train_list.txt").read_text().splitlines()]
    assert [caption for _, caption in written] == [f"caption {number} of it" for number in (0, 2, 5, 6, 7, 8)]
    assert written[0][0] == written[-1][0] and written[0][0].startswith("./train/")
    with Image.open(tmp_path / "out" / written[0][0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (27, 16))  # 40x24, shorter side to 16
    assert not list((tmp_path / "out").rglob(".partial*"))
    data = build_dataset(DatasetConfig(type="cc3m", root=str(tmp_path / "out"), resolution=8), "train")
    assert data.captions([0]) == ["caption 0 of it"] and data.fetch(np.arange(6), None)["image"].shape == (6, 3, 8, 8)
    assert data.corrupt_count() == 0


@pytest.mark.parametrize(
    ("path", "reason", "times"),
    [
        ("/status/404", "gone", 1),
        ("/status/410", "gone", 1),
        ("/status/401", "forbidden", 1),
        ("/status/418", "other status", 1),
        ("/status/429", "too many requests", 2),
        ("/status/500", "server error", 2),
        ("/hang", "timeout", 2),
        ("/cut", "connection", 2),
        ("/text", "not an image", 1),
        ("/huge", "too large", 1),
        ("/endless", "too large", 1),
        ("/bomb", "not an image", 1),
        ("/to-file", "other status", 1),
        ("/to-ftp", "not an http URL", 1),
    ],
)
def test_failures_by_class_and_how_often_each_is_tried(server, path, reason, times):
    limits = replace(FAST, timeout=0.3) if path == "/hang" else FAST
    with pytest.raises(FetchFailed) as failure:
        fetch_image(server.url + path, limits)
    assert failure.value.reason == reason and server.asked[path] == times


def test_only_http_urls_and_nobody_listening():
    for url in ("data:image/png;base64,AAAA", "http:///x", "https://host:99999/x", "http://ho st/x", "javascript:1"):
        with pytest.raises(FetchFailed, match="not an http URL"):
            fetch_image(url, FAST)
    with pytest.raises(FetchFailed, match="connection"):
        fetch_image("http://127.0.0.1:9/x.jpg", FAST)


def test_internal_addresses_are_for_those_who_allow_them(server, tmp_path):
    path = _list(tmp_path / "list.tsv", [("c", server.url + "/ok/1"), ("d", server.url + "/status/404")])
    assert _run(path, tmp_path / "out", allow_private=False)["dead"] == {"internal address": 2}
    assert not server.asked
    report = _run(path, tmp_path / "out")  # remembered as final, but not of a download that may
    assert (report["alive"], report["dead"]) == (1, {"gone": 1})
    assert _run(path, tmp_path / "out", allow_private=False)["dead"] == {"gone": 1}


def test_a_server_that_asks_for_patience_is_waited_for(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert fetch_image(server.url + "/flaky", FAST)[:2] == b"\xff\xd8"
    with pytest.raises(FetchFailed):
        fetch_image(server.url + "/status/503", replace(FAST, timeout=5, retries=4, backoff=1.0))
    growing = pauses[1:]
    assert len(growing) == 4 and all(0.5 * 2**k <= pause <= 1.5 * 2**k for k, pause in enumerate(growing))


def test_started_again_it_goes_on(server, tmp_path):
    urls = [f"{server.url}{path}" for path in ("/ok/1", "/ok/2", "/status/404", "/status/500")]
    path = _list(tmp_path / "list.tsv", [(f"c{number}", url) for number, url in enumerate(urls)])
    assert _run(path, tmp_path / "out", "--limit", 1)["alive"] == 1
    report = _run(path, tmp_path / "out")
    assert report["alive"] == 2 and report["dead"] == {"gone": 1, "server error": 1}
    assert server.asked == {"/ok/1": 1, "/ok/2": 1, "/status/404": 1, "/status/500": 2}
    assert _run(path, tmp_path / "out")["dead"] == report["dead"]
    assert server.asked == {"/ok/1": 1, "/ok/2": 1, "/status/404": 1, "/status/500": 4}  # may have been passing
    with open(tmp_path / "out" / "train_failures.tsv", "a") as journal:
        journal.write("gone\t" + urls[1])  # cut off while it was written
    _run(path, tmp_path / "out", "--retry-failed")
    assert server.asked["/status/404"] == 2 and server.asked["/ok/1"] == 1
    next((tmp_path / "out" / "train").rglob("*.jpg")).unlink()
    assert _run(path, tmp_path / "out")["alive"] == 2


def test_no_more_than_the_workers_at_a_time_and_an_interruption_keeps_all(server, tmp_path, monkeypatch, capsys):
    lines = [("c", f"{server.url}/slow/{number}") for number in range(40)]
    path = _list(tmp_path / "list.tsv", lines)
    original = Download._fetch

    def fetch(self, url):
        if url.endswith("/5"):
            raise KeyboardInterrupt
        return original(self, url)

    monkeypatch.setattr(Download, "_fetch", fetch)
    with pytest.raises(SystemExit) as stopped:
        _run(path, tmp_path / "out", "--workers", 3)
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "train_report.json").read_text())
    kept = len((tmp_path / "out" / "train_list.txt").read_text().splitlines())
    assert 3 <= kept == report["pairs"] == len(list((tmp_path / "out").rglob("*.jpg")))
    assert report["not tried"] >= 10
    monkeypatch.setattr(Download, "_fetch", original)
    assert _run(path, tmp_path / "out", "--workers", 8)["alive"] == 40
    assert 3 < server.most <= 8


def test_a_disk_that_refuses_stops_the_download(server, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.download_cc3m.os.replace", refuse)
    path = _list(tmp_path / "list.tsv", [("c", f"{server.url}/ok/{number}") for number in range(30)])
    with pytest.raises(UserError, match="cannot write .*No space left on device"):
        _run(path, tmp_path / "out", "--workers", 2)
    assert not list((tmp_path / "out").rglob("*.jpg")) and not (tmp_path / "out" / "train_list.txt").exists()


def test_lists_and_flags_that_are_wrong(tmp_path, capsys):
    path = tmp_path / "list.tsv"
    path.write_text("a dog\thttp://h/1\nhttp://h/2\ta cat\nsee http://x\thttps://h/3\n")
    assert read_url_list(path) == [("http://h/1", "a dog"), ("http://h/2", "a cat"), ("https://h/3", "see http://x")]
    assert len(read_url_list(path, 2)) == 2
    for content, message in (("", "is empty"), ("a\tb\tc\n", "line 1 has 3 columns; expected caption<TAB>URL")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_url_list(path)
    for flags in (
        ["--workers", "0"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--backoff", "inf"],
        ["--split", "test"],
        ["--retrys", "1"],
        ["a=b"],
    ):
        with pytest.raises(SystemExit) as stopped:
            parse([str(path), "--out", "x", "--split", "val", *flags])
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
