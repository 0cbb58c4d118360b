"""The built documentation site in a real Chromium: the search finds names, no other host is asked: `make test-web`."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.browser import Watched, chromium
from tests.repository import ROOT

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]
PATIENCE = 60_000  # milliseconds: a busy machine is no failure
DOCS, NOTEBOOKS = (ROOT / "docs").name, (ROOT / "notebooks").name
PAGES = ("index", f"{DOCS}/index", "README", f"{DOCS}/gallery", f"{DOCS}/api/quantizers", f"{NOTEBOOKS}/quickstart")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    """Address of a fresh build, which has no warning."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html", ".", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def watched(site, browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE)
    found = Watched(page)
    found.watch(site)
    yield found
    page.close()
    assert found.strangers == [] and found.complaints == []


def leave(watched: Watched, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        watched.page.screenshot(path=Path(folder) / f"site-{name}.png")


def test_the_search_finds_a_class(site, watched):
    page = watched.page
    page.goto(f"{site}{DOCS}/index.html")
    page.get_by_placeholder("Search").first.fill("ResidualQuantizer")
    page.keyboard.press("Enter")
    found = page.locator("#search-results ul.search a", has_text=re.compile("ResidualQuantizer$"))
    found.first.wait_for()
    leave(watched, "search")
    found.first.click()
    page.wait_for_url(re.compile(r"/api/quantizers\.html"))
    assert page.get_by_role("heading", name="ResidualQuantizer").first.is_visible()
    page.wait_for_timeout(500)  # the page slides to the place
    leave(watched, "api")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_else(site, watched, name):
    page = watched.page
    page.goto(f"{site}{name}.html")
    page.wait_for_load_state("networkidle")
    assert page.get_by_role("heading").first.is_visible()
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth && i.loading != 'lazy').map(i => i.src)")
    assert broken == []
    # tables and code scroll inside; the page itself does not
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    leave(watched, name.replace("/", "-"))
