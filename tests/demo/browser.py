"""A real browser for the tests of the web demo: Playwright with a Chromium that is on this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.commands import start
from tests.repository import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_CHROMIUM = (
    "no Chromium: apt-get install chromium (Debian, Ubuntu), or .venv/bin/playwright install chromium, "
    "or make test-web CHROMIUM=/path/to/one"
)
HERE = ("127.0.0.1", "localhost", "::1", "None")


@dataclass
class Watched:
    """A page and what must not happen in it.

    Attributes:
        page: of Playwright.
        complaints: errors of the console and of scripts.
        strangers: addresses of other hosts that it asked for.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def watch(self, address: str) -> None:
        """Everything from now on."""
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

        def asked(request: Any) -> None:
            if not request.url.startswith((address, "data:", f"blob:{address}")):
                self.strangers.append(request.url)

        self.page.on("request", asked)


def chromium_path(own: str) -> str:
    """Where a Chromium is: $CHROMIUM, what is installed, or Playwright's own; without one the tests end in a line."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [*filter(None, map(shutil.which, NAMES)), own]
    there = next((path for path in found if Path(path).is_file()), None)
    if there is None:
        pytest.exit(f"CHROMIUM={named} is no file; {NO_CHROMIUM}" if named else NO_CHROMIUM, returncode=2)
    return there


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = chromium_path(playwright.chromium.executable_path)
        # as root, which containers are, Chromium has no sandbox
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Served:
    """A web demo that runs.

    Attributes:
        address: of its page.
        hold: while this file is there, requests that draw take for ever, or so many seconds a position as it says.
    """

    address: str
    hold: Path


@contextmanager
def server(stage1: str, stage2: str, folder: Path) -> Iterator[Served]:
    """The web demo of these models in a process of its own. It has spoken to this machine only and leaves no upload."""
    addresses, hold = folder / "addresses.txt", folder / "hold"
    words = ["--stage1", stage1, "--stage2", stage2, "--save-dir", folder / "web"]
    (uploads := folder / "temporary").mkdir()
    places = {"ADDRESSES": str(addresses), "HOLD": str(hold), "TMPDIR": str(uploads)}
    process = start(ROOT / "tests" / "demo" / "watched_server.py", *words, **places)
    try:
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        address = next((found[0] for line in said if (found := re.search(r"http://[\d.]+:\d+/", line))), None)
        assert address is not None, process.communicate()[1][-3000:]
        yield Served(address, hold)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert list(uploads.glob("rq-web-*")) == []
    lines = addresses.read_text().splitlines()
    assert "socket.bind 127.0.0.1" in lines
    assert [line for line in lines if line.split(" ", 1)[1] not in HERE] == []
