"""`docs/configuration.md` is what the dataclasses say, and every key is there with a meaning."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from typing import Any, get_args, get_type_hints

import pytest

from rqvae.bottleneck import BOTTLENECKS
from tests.repository import ROOT
from training import configuration
from training.configuration import Meaning, default_of, meanings_of, page, type_words
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

COMMITTED = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys_of(schema: type, prefix: str = "") -> set[str]:
    """Dotted keys of a dataclass as the running program has them."""
    found = set()
    for name, hint in get_type_hints(schema).items():
        if not dataclasses.is_dataclass(schema) or name not in {item.name for item in dataclasses.fields(schema)}:
            continue
        found.add(prefix + name)
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                found |= keys_of(part, f"{prefix}{name}.")
    return found


def rows() -> list[list[str]]:
    lines = re.findall(r"^\| (`.*) \|$", COMMITTED, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def test_the_committed_page_is_what_the_command_makes():
    assert page() == COMMITTED, "run `python -m training.configuration > docs/configuration.md`"


def test_every_key_of_both_stages_has_a_row_with_a_type_and_a_meaning():
    table = rows()
    listed = {cells[0].strip("`") for cells in table}
    for key in keys_of(Stage1Config) | keys_of(Stage2Config):
        # the second time a class comes, its keys stand where it came first
        first = re.sub(r"^gan\.disc\.optimizer\.", "optimizer.", key)
        first = re.sub(r"^arch\.head\.", "arch.body.", first)
        assert re.sub(r"^sampling\.", "experiment.sample.", first) in listed, key
    assert all(len(cells) == 5 and cells[1] and len(cells[4]) > 4 for cells in table)


def test_every_option_of_every_bottleneck_has_a_row():
    for kind, row in BOTTLENECKS.items():
        if row.options is not None:
            table = COMMITTED.partition(f"`bottleneck_type: {kind}`")[2].partition("## ")[0]
            named = set(re.findall(r"^\| `arch\.hparams\.bottleneck\.(\w+)`", table, re.MULTILINE))
            assert named == {item.name for item in dataclasses.fields(row.options)}, kind


def test_it_needs_no_package():
    """Not even those that runtime's own modules take, when they are asked for more."""
    lazy = "import sys; import training.configuration as c; c.page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lazy], cwd=ROOT).returncode == 0


def test_entries_of_docstrings():
    docstring = """Sizes.

    More on them.

Attributes:
    a: one thing.
    b, c (steps): `x: y` over
        two lines.
    """
    found = meanings_of(docstring.replace("\n    \n", "\n"))
    assert found == {"a": Meaning("one thing."), "b": Meaning("`x: y` over two lines.", "steps"), "c": found["b"]}


@pytest.mark.parametrize(
    ("line", "words", "default"),
    [
        ("x: int", "whole number", None),
        ("x: int = MISSING", "whole number", None),
        ("x: Optional[bool] = None", "true, false or null", "null"),
        ("x: List[float] = field(default_factory=lambda: [0.9, 0.999])", "list: number", "[0.9, 0.999]"),
        ("x: float = 1e-4", "number", "0.0001"),
        ("x: float | None = math.log(2)", "number or null", "math.log(2)"),
        ("x: bool = False", "true or false", "false"),
        ("x: str = BACKGROUND", "text", "white"),
    ],
)
def test_types_and_defaults_are_in_the_words_of_a_yaml_file(line, words, default):
    (item,) = ast.parse(line).body
    assert isinstance(item, ast.AnnAssign) and type_words(item.annotation) == words
    assert default_of("data/config.py", item.value) == default


def test_a_field_without_a_meaning_and_a_meaning_without_a_field_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "ROOT", tmp_path)
    source = 'from dataclasses import dataclass\n\n@dataclass\nclass A:\n    """Of it.{}"""\n\n    x: int = 1\n'
    for number, (more, message) in enumerate(
        [("", "x has no meaning"), ("\n\n    Args:\n        y: no.\n    ", "of y")]
    ):
        (tmp_path / f"a{number}.py").write_text(source.format(more))
        with pytest.raises(AssertionError, match=message):
            section: Any = configuration.section_of(f"a{number}.py", "A")
            list(configuration.rows(section, "", {}))
