"""`python -m evaluation.networks`: only what was asked for is downloaded, and only the published bytes are kept."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from evaluation.networks import weight_files
from evaluation.networks.__main__ import main, parse
from evaluation.networks.weight_files import FID_INCEPTION, WeightSource, fetch_weights, find_weights
from runtime.errors import UserError
from runtime.network import http_client

CONTENT = b"weights " * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        served = {"/right": CONTENT, "/other": b"another file", "/short": CONTENT[:1000]}
        content = served.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(CONTENT) if self.path == "/short" else len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def source(tmp_path, monkeypatch, server):
    """The only known weights, in an empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("A_WEIGHT_FILE", raising=False)
    monkeypatch.setattr(http_client, "is_internal", lambda address: address != "127.0.0.1")  # it stands for one outside
    source = WeightSource("a-weight-file.pth", SHA256[:8], "A_WEIGHT_FILE", f"{server}/right", SHA256)
    monkeypatch.setattr(weight_files, "WEIGHTS", {"small": source})
    return source


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def refused(match, call, *args):
    with pytest.raises(UserError, match=match) as error:
        call(*args)
    assert "\n" not in str(error.value)


def test_fetched_into_the_cache_where_it_is_found(source, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="python -m evaluation.networks fetch"):
        find_weights(source)
    main(parse(["fetch"]))
    assert capsys.readouterr().out == f"small: {source.cached}\n"
    assert find_weights(source) == (source.cached, SHA256)
    assert files_below(tmp_path) == ["a-weight-file.pth"]
    main(parse(["verify"]))
    assert SHA256 in capsys.readouterr().out


def test_a_sound_file_is_not_fetched_again_and_a_damaged_one_is(source, tmp_path):
    fetch_weights(source)
    fetch_weights(source, "http://127.0.0.1:1/nobody")
    source.cached.write_bytes(CONTENT[:-1])
    refused("cannot download", fetch_weights, source, "http://127.0.0.1:1/nobody")
    assert source.cached.read_bytes() == CONTENT[:-1]
    fetch_weights(source)
    assert source.cached.read_bytes() == CONTENT


def test_from_a_file_url_to_a_place_of_choice(source, tmp_path, capsys):
    (tmp_path / "copy").write_bytes(CONTENT)
    target = tmp_path / "deep" / "x.pth"
    main(parse(["fetch", "small", "--url", (tmp_path / "copy").as_uri(), "--path", str(target)]))
    assert target.read_bytes() == CONTENT
    assert files_below(tmp_path) == ["copy", "x.pth"]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("{server}/other", "gives another file: its SHA-256 is .*nothing was kept"),
        ("{server}/short", "cannot download|gives another file"),
        ("{server}/nothing", "cannot download .*: 404"),
        ("http://127.0.0.1:{closed}/x", "cannot download .*[Rr]efused"),
        ("http://nowhere.invalid/x", "cannot download http://nowhere.invalid/x"),
        ("file:///nowhere/x", "cannot download file:///nowhere/x"),
        ("ftp://x/y", "must start with https:, http:, file:"),
        ("/some/path", "is no address"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing(source, tmp_path, server, url, match):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    refused(match, fetch_weights, source, url.format(server=server, closed=closed))
    assert files_below(tmp_path) == []


def test_an_internal_address_is_for_those_who_allow_it(source, tmp_path, server):
    inside = server.replace("127.0.0.1", "127.0.0.2")
    refused("127.0.0.2 is the internal address 127.0.0.2; --allow-private", fetch_weights, source, f"{inside}/right")
    assert files_below(tmp_path) == []
    refused("cannot download .*: Connection refused|refused", fetch_weights, source, f"{inside}/right", None, True)


def test_an_unwritable_place(source, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused("cannot write", fetch_weights, source, None, tmp_path / "file" / "x.pth")


def test_verify_tells_damaged_foreign_and_missing_apart(source, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        main(parse(["verify"]))
    (tmp_path / "other.pth").write_bytes(b"my own network")
    monkeypatch.setenv("A_WEIGHT_FILE", str(tmp_path / "other.pth"))
    refused("other.pth is not the published file", main, parse(["verify"]))
    assert find_weights(source)[0].name == "other.pth"  # a user's own network is taken under its own name
    damaged = tmp_path / source.file_name
    damaged.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        main(parse(["verify", "small", "--path", str(damaged)]))
    # the start of the hash alone does not make it the published file
    assert not source.matches(SHA256[:8] + "0" * 56)


def test_where(source, capsys, monkeypatch):
    main(parse(["where"]))
    assert f"{source.cached} (missing)" in capsys.readouterr().out
    fetch_weights(source)
    main(parse(["where"]))
    assert f"{source.cached} (there)" in capsys.readouterr().out
    monkeypatch.setenv("A_WEIGHT_FILE", "/else.pth")
    main(parse(["where"]))
    assert "/else.pth (missing)" in capsys.readouterr().out


def test_the_published_file():
    assert FID_INCEPTION.sha256.startswith(FID_INCEPTION.sha256_prefix)
    assert FID_INCEPTION.sha256_prefix in FID_INCEPTION.file_name
    assert len(FID_INCEPTION.sha256) == 64


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["fetch", "fid-inception", "--url", "http://nowhere.invalid/x"], "cannot download"),
        (["verify"], "no weights at"),
        (["fetch", "--url", "http://nowhere.invalid/x"], "need a name: fid-inception"),
        (["fetch", "fid"], "invalid choice: 'fid'"),
    ],
)
def test_the_command_ends_with_one_line(tmp_path, monkeypatch, command, words, match):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("FID_INCEPTION_WEIGHTS", raising=False)
    code, out, error = command("evaluation.networks", *words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert match in error
    assert files_below(tmp_path) == []
