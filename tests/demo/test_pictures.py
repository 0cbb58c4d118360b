"""Pictures say which command made them, and that command is there; badges say what the project claims."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from PIL import Image

from demo.badges import COMMAND as BADGES_COMMAND
from demo.badges import badges
from demo.pictures.__main__ import MODELLED, main, parse
from demo.pictures.drawing import KINDS
from demo.pictures.families import FAMILIES, trained
from runtime.errors import UserError
from runtime.pages.picture_note import COMMAND, CREDIT, picture_notes, sign_picture
from sampling.picture_grids import save_image_file
from tests.repository import ROOT
from tests.test_documents import runs_as_command, tracked

PICTURES = [name for name in tracked() if re.match(r"docs\b.*\.png$", name)]


def test_there_are_pictures():
    assert {f"docs/pictures/{kind}.png" for kind in KINDS} <= set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_names_the_command_that_made_it(name):
    notes = picture_notes(ROOT / name)
    python, flag, module, *words = shlex.split(notes[COMMAND])
    assert (python, flag) == ("python", "-m") and runs_as_command(module)
    if module == "demo.pictures":
        assert parse(words).names == words and notes[CREDIT]
        family, _ = MODELLED.get(words[0], (None, None))
        assert family is None or notes[CREDIT] == FAMILIES[family].credit
    with Image.open(ROOT / name) as picture:
        assert picture.text[COMMAND] == notes[COMMAND]  # others read it too
        picture.load()


@pytest.mark.parametrize("name", [name for name in tracked() if re.match(r"docs\b.*\.md$", name)] + ["README.md"])
def test_pictures_have_words_for_those_who_do_not_see_them(name):
    assert [
        target for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / name).read_text()) if not words
    ] == []


def test_every_picture_is_shown_somewhere():
    texts = "".join((ROOT / name).read_text() for name in tracked() if name.endswith(".md"))
    shown = {target.rpartition("/")[2] for target in re.findall(r"!\[.*?\]\((.*?)\)", texts)}
    assert [name for name in PICTURES if name.rpartition("/")[2] not in shown] == []


def test_notes_leave_the_pixels(tmp_path):
    path = tmp_path / "a.png"
    save_image_file(torch.arange(48, dtype=torch.uint8).view(3, 4, 4), path)
    with Image.open(path) as picture:
        before = picture.tobytes()
    sign_picture(path, {COMMAND: "one", CREDIT: "ü"})
    sign_picture(path, {COMMAND: "python -m demo"})
    with Image.open(path) as picture:
        assert picture.tobytes() == before and picture.text == {CREDIT: "ü", COMMAND: "python -m demo"}
    assert picture_notes(path) == {COMMAND: "python -m demo", CREDIT: "ü"}
    path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is no PNG"):
        sign_picture(path, {})


def test_an_unknown_picture_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(["heroes"])
    assert "'heroes' is no picture; choose from hero," in capsys.readouterr().err


def test_models_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is not there: `python -m demo` trains its models first"):
        main(parse(["hero", "--run", str(tmp_path / "none")]))
    with pytest.raises(UserError, match="is not there: `python -m demo.text` trains its models first"):
        main(parse(["prompts", "--text-run", str(tmp_path / "none")]))
    with pytest.raises(UserError, match="has no run of stage2"):
        main(parse(["openmoji_samples", "--openmoji-run", str(tmp_path)]))


def test_the_newest_run_is_drawn_from_and_its_best_snapshot(tmp_path):
    run = tmp_path / "stage1" / "name" / "2026-01-02_00-00-00"
    for folder in (run, run.with_name("2026-01-01_00-00-00")):
        folder.mkdir(parents=True)
    assert trained(tmp_path, "stage1") == run
    (run / "snapshots" / "best").mkdir(parents=True)
    assert trained(tmp_path, "stage1") == run / "snapshots" / "best"


def test_badges_say_what_the_project_claims():
    made = badges((ROOT / "pyproject.toml").read_text())
    users = (ROOT / "README.md").read_text() + (ROOT / "docs/conf.py").read_text()
    for file, svg in made.items():
        assert (ROOT / "docs/pictures" / file).read_text() == svg and f"pictures/{file}" in users
        assert BADGES_COMMAND in svg and "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert parse(BADGES_COMMAND.split()[3:]).names == ["badges"]
