"""The web demo in a real Chromium: `make test-web`. A screenshot of every tab is left in $SCREENSHOTS."""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import succeed
from tests.demo.browser import Served, Watched, chromium, server
from tests.demo.web_models import CLASSES, TEXT, make_checkpoints, paths_of

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]
PATIENCE = 60_000  # milliseconds: a busy machine is no failure


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(checkpoints, tmp_path_factory) -> Iterator[Served]:
    with server(*paths_of(checkpoints, CLASSES), tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def text_served(checkpoints, tmp_path_factory) -> Iterator[Served]:
    with server(*paths_of(checkpoints, TEXT), tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Any]:
    """`opened(served, tab)`: a page at this tab; at the end no console error and no request to another host."""
    watched: list[Watched] = []

    def open_page(served: Served, tab: str) -> Any:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE)
        watched.append(Watched(page))
        watched[-1].watch(served.address)
        answer = page.goto(served.address)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        page.get_by_role("tab", name=tab, exact=True).click()
        return page

    yield open_page
    for one in watched:
        one.page.close()
        assert (one.complaints, one.strangers) == ([], [])


def screenshot(page: Any, name: str) -> None:
    """For a person to look at."""
    folder = Path(os.environ.get("SCREENSHOTS", "runs/web-screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def pictures(page: Any, place: str) -> dict[str, bytes]:
    """The PNG files of a gallery, by the line below each."""
    figures = page.locator(f"{place} figure").all()
    files = [figure.locator("img").get_attribute("src").removeprefix("data:image/png;base64,") for figure in figures]
    return {figure.locator("figcaption").inner_text(): base64.b64decode(file) for figure, file in zip(figures, files)}


def run_shown(page: Any, place: str) -> list[str]:
    """Runs the command that the page shows, in a process of its own; its words."""
    words = shlex.split(page.locator(f"{place} pre").last.inner_text())
    assert words[0] == "python"
    succeed(*words[1:], timeout=300)
    return words


def saved_by(words: list[str], kind: str) -> Path:
    """The newest run below the command's --save-dir."""
    return max((Path(words[words.index("--save-dir") + 1]) / kind).iterdir())


def test_the_same_seed_gives_the_files_of_the_command(served, opened):
    page = opened(served, "Generate")
    page.get_by_label("Seed").first.fill("11")
    page.get_by_label("Top-k").first.fill("4 8 8 16")
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => window.seen.push(
        document.querySelector('#generated-below').innerText)).observe(document.body, {subtree: true, childList: true,
        characterData: true}); }"""
    )
    served.hold.write_text("0.05")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(re.compile("position [234]\\d of 64")).wait_for()
    screenshot(page, "generate-growing")
    page.locator("#generated-below pre").wait_for()
    served.hold.unlink()
    shown = pictures(page, "#generated")
    screenshot(page, "generate")
    positions = [
        int(found[1]) for text in page.evaluate("window.seen") if (found := re.search(r"position (\d+)", text))
    ]
    assert positions == sorted(positions) and len(set(positions)) > 3
    words = run_shown(page, "#generated-below")
    assert words[words.index("--seed") + 1] == "11" and "--class" in words
    images = saved_by(words, "samples") / "images"
    assert len(shown) == 4 and shown == {file.name: file.read_bytes() for file in images.iterdir()}


def paint(page: Any, *cells: tuple[float, float]) -> None:
    """A stroke through these places, in shares of the image's width and height."""
    box = page.locator("#painter .cells").bounding_box()
    for number, (x, y) in enumerate(cells):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if not number:
            page.mouse.down()
    page.mouse.up()


def test_cells_that_are_not_painted_keep_their_codes(served, opened):
    page = opened(served, "Complete")
    page.locator("#painter .cells").wait_for()
    paint(page, (0.3, 0.3), (0.7, 0.3), (0.7, 0.6))
    page.get_by_text(re.compile(r"^\d+ of 64 cells are painted")).wait_for()
    painted = [int(cell.get_attribute("data-cell")) for cell in page.locator("#painter .cells i.painted").all()]
    assert {18, 19, 20, 21, 37} <= set(painted) and len(painted) < 16
    page.get_by_role("button", name="Draw 4 fills").click()
    page.locator("#fills-below pre").wait_for()
    shown = pictures(page, "#fills")
    screenshot(page, "complete")
    directory = saved_by(run_shown(page, "#fills-below"), "inpainted")
    codes = np.load(directory / "codes.npz")
    assert codes["redrawn"].flatten().nonzero()[0].tolist() == painted
    kept = ~codes["redrawn"]
    assert (codes["fills"][:, kept] == codes["image"][kept]).all()
    assert {name: shown[name] for name in shown if name != "kept"} == {
        f"fill-{number}.png": (directory / f"fill-{number}.png").read_bytes() for number in range(4)
    }
    # a stroke that begins on a painted cell erases
    paint(page, (0.31, 0.31), (0.32, 0.32))
    page.get_by_text(re.compile(rf"^{len(painted) - 1} of 64 cells are painted")).wait_for()


def test_the_slider_at_its_end_is_the_reconstruction(served, opened):
    page = opened(served, "Reconstruct")
    page.locator("#reconstructed figure").first.wait_for()
    whole = pictures(page, "#reconstructed")
    screenshot(page, "reconstruct")
    page.get_by_role("tab", name="Coarse to fine").click()
    assert pictures(page, "#coarse")["from 4 codes"] == whole["reconstruction"]
    slider = page.get_by_label("number input for Codes of every position")
    slider.fill("2")
    slider.press("Enter")
    page.locator("#coarse figcaption", has_text="from 2 codes").wait_for()
    coarse = pictures(page, "#coarse")
    screenshot(page, "coarse-to-fine")
    assert page.get_by_text(re.compile("^2 of 4 codes a position.* 3.000 bits per pixel$")).is_visible()
    words = run_shown(page, "#coarse-below")
    assert (Path(words[4]) / "images" / Path(words[3]).name).read_bytes() == coarse["from 2 codes"]


@pytest.mark.parametrize(
    ("tab", "place"), [("Complete", "#painter"), ("Coarse to fine", "#coarse"), ("Reconstruct", "#reconstructed")]
)
def test_a_bad_upload_is_a_line_and_a_good_one_a_picture(tab, place, served, opened, tmp_path):
    page = opened(served, tab)
    page.locator(f"{place} img:visible").first.wait_for()
    before = page.locator(f"{place} img:visible").first.get_attribute("src")
    (tmp_path / "bad.png").write_text("no picture")
    upload = page.get_by_role("tabpanel").filter(visible=True).locator("input[type=file]").first
    upload.set_input_files(tmp_path / "bad.png")
    line = page.locator(".mistake:visible")
    line.wait_for()
    assert (
        line.inner_text() == "error: bad.png cannot be read as an image: it is none of JPEG, PNG, WEBP, BMP, TIFF, PPM"
    )
    assert page.locator(f"{place} img:visible").first.get_attribute("src") == before
    screenshot(page, f"bad-upload-{tab.lower().replace(' ', '-')}")
    Image.fromarray(np.full((16, 24, 3), 200, np.uint8)).save(tmp_path / "good.png")
    upload.set_input_files(tmp_path / "good.png")
    line.wait_for(state="detached")
    page.wait_for_function(
        "([place, before]) => document.querySelector(`${place} img`).src !== before", arg=[place, before]
    )


def test_wrong_fields_are_a_line(served, opened):
    page = opened(served, "Generate")
    page.get_by_label("Temperature").first.fill("warm")
    page.get_by_role("button", name="Generate").click()
    page.locator("#generated-below .mistake").wait_for()
    said = page.locator("#generated-below").inner_text()
    assert said.strip() == "error: temperature 'warm' must be numbers, such as 0.9"


def test_a_second_request_waits_in_a_queue_that_is_seen(served, opened):
    first, second = opened(served, "Generate"), opened(served, "Generate")
    served.hold.write_text("")
    first.get_by_role("button", name="Generate").click()
    first.locator("#generated-below .pending, #generated-below .generating").first.wait_for(state="attached")
    second.get_by_role("button", name="Generate").click()
    second.get_by_text(re.compile("queue: 1/1")).first.wait_for()
    screenshot(second, "queue")
    assert not first.locator("#generated figure").count() and not second.locator("#generated figure").count()
    served.hold.unlink()
    for page in (first, second):
        page.locator("#generated-below pre").wait_for()
    assert pictures(first, "#generated") == pictures(second, "#generated")


def test_texts_are_read_and_drawn(text_served, opened):
    page = opened(text_served, "Text")
    page.get_by_label("Prompts, one a line").fill("a small red circle\na large square on a background")
    page.get_by_role("button", name="Read and draw").click()
    page.locator("#texts-below pre").wait_for()
    assert page.locator("#tokens td").first.inner_text().split() == ["a", "1"]
    shown = pictures(page, "#texts")
    screenshot(page, "text")
    images = saved_by(run_shown(page, "#texts-below"), "samples") / "images"
    assert len(shown) == 4
    for label, encoded in shown.items():
        assert (images / re.search(r"\((\d+\.png)\)", label)[1]).read_bytes() == encoded
