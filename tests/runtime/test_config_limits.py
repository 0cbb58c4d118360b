"""Configs from elsewhere: bombs of aliases and interpolations end at once, no variable of the environment leaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rqstack.archive import read_archive
from rqstack.config_limits import ENVIRONMENT, MOST_DEPTH, check_interpolations, check_yaml
from rqvae.strict_mapping import typed
from runtime.config import config_to_yaml, load_config
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t-of-whoever-reads-it"


@dataclass
class Open:
    """Any values."""

    name: str = "x"
    steps: int = 1
    more: dict[str, Any] = field(default_factory=dict)


def bomb(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


def doubled(levels: int) -> str:
    """Text that doubles with every line."""
    return "\n".join([f"a{level}: ${{a{level + 1}}}${{a{level + 1}}}" for level in range(levels)] + [f"a{levels}: xx"])


def chained(levels: int) -> str:
    return "\n".join([f"a{level}: ${{a{level + 1}}}" for level in range(levels)] + [f"a{levels}: x"])


def sections(levels: int) -> str:
    """Sections that hold the next one twice."""
    inside = [f"s{level}: {{x: '${{s{level + 1}}}', y: '${{s{level + 1}}}'}}" for level in range(levels)]
    return "\n".join([*inside, f"s{levels}: {{x: 1}}"])


def indented(text: str) -> str:
    """In the section `more`."""
    inside = text.replace("${a", "${more.a").replace("${s", "${more.s")
    return "more:\n" + "".join(f"  {line}\n" for line in inside.splitlines())


BOMBS = {
    "aliases of aliases": indented(bomb(12)),
    "merged aliases": "more:\n  a: &a {x: 1}\n" + "".join(f"  b{n}: &b{n} [*a, *a]\n" for n in range(15_000)),
    "lists in lists": "more: {a: " + "[" * 200 + "]" * 200 + "}",
    "sections in sections": "more: " + "{a: " * 200 + "1" + "}" * 200,
    "two megabytes": "name: " + "x" * 2_000_000,
    "texts that double": indented(doubled(40)),
    "sections that double": indented(sections(40)),
    "a chain": indented(chained(3000)),
    "a circle": "more: {a: '${more.b}', b: '${more.a}'}",
    "itself": "more: {a: 'x${.a}'}",
    "one inside the other": "name: " + "${" * 200 + "name" + "}" * 200,
    "one inside another": "more: {a: '${more.${name}}'}",
    "a long one": "more: {a: '" + "${name}" * 500 + "'}",
    "a copy": "more: {a: '${oc.select:more}'}",
    "a made one": "more: {a: '${oc.create:${more}}'}",
    "an alias inside of what it names": "more: {a: &a [*a]}",
    "a number of 30,000 bits": "steps: 1" + ":59" * 5000,
    "a number of 100,000 digits": "steps: " + "9" * 100_000,
    "a defaults list that is looked up": "defaults: ['${oc.env:AWS_SECRET_ACCESS_KEY}']",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    file = tmp_path / "a.yaml"
    file.write_text(BOMBS[kind])
    with pytest.raises(UserError) as raised:
        load_config(Open, file)
    line = str(raised.value)
    assert str(file) in line and "\n" not in line
    assert len(line) - len(str(file)) < 250
    assert SECRET not in line


@pytest.mark.parametrize("kind", ["aliases of aliases", "texts that double", "a chain"])
def test_so_are_those_of_shared_files(kind, tmp_path):
    (tmp_path / "configs" / "shared").mkdir(parents=True)
    (tmp_path / "configs" / "shared" / "b.yaml").write_text("# @package _global_\n" + BOMBS[kind])
    for number, entry in enumerate(("/shared/b", "{shared: b}", "{/shared: b}", "shared/b@_global_")):
        file = tmp_path / "configs" / f"{number}.yaml"
        file.write_text(f"defaults: [{entry}, _self_]\n")
        with pytest.raises(UserError):
            load_config(Open, file)


@pytest.mark.parametrize("kind", ["aliases of aliases", "texts that double", "a circle", "one inside the other"])
def test_so_are_those_beside_weights(kind, tmp_path):
    (tmp_path / "config.yaml").write_text("arch: {type: rq-vae}\n" + BOMBS[kind])
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError) as raised:
        read_archive(tmp_path / "model.safetensors").sections("rq-vae")
    assert len(str(raised.value)) - len(str(tmp_path)) < 300


SPELLINGS = [
    "${oc.env:AWS_SECRET_ACCESS_KEY}",
    "x-${oc.env:AWS_SECRET_ACCESS_KEY}-y",
    "${oc.env:'AWS_SECRET_ACCESS_KEY'}",
    "${ oc.env : AWS_SECRET_ACCESS_KEY }",
    "${oc.env: AWS_SECRET_ACCESS_KEY,none}",
    "${oc.env:HOME}${oc.env:AWS_SECRET_ACCESS_KEY}",
    "${oc.env:NOT_THERE,${oc.env:AWS_SECRET_ACCESS_KEY}}",
    "${oc.decode:${oc.env:AWS_SECRET_ACCESS_KEY}}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_secret_reaches_a_config_or_a_message(spelling, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    file = tmp_path / "config.yaml"
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for key in ("name", "steps", "nothing"):
        file.write_text(f'{key}: "{spelling}"\n')
        with pytest.raises(UserError) as raised:
            load_config(Open, file)
        assert SECRET not in str(raised.value)
    with pytest.raises(UserError) as raised:
        load_config(Open, None, [f"name={spelling}"])
    assert SECRET not in str(raised.value)
    file.write_text(f'arch: {{type: "{spelling}"}}\n')
    with pytest.raises(ValueError) as raised:
        read_archive(tmp_path / "model.safetensors").sections("rq-vae")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("text", ["${" * 3000, "${name}" * 3000, "${a" * 900 + "}" * 900])
def test_words_of_the_command_line_too(text):
    with pytest.raises(UserError) as raised:
        load_config(Open, None, [f"name={text}"])
    assert len(str(raised.value)) < 300


def test_variables_on_the_list_and_references_are_what_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    file = tmp_path / "a.yaml"
    file.write_text("name: ${oc.env:SCRATCH}/run\nmore: {a: '${name}', b: ['${more.a}', '${steps}'], c: '${.b}'}\n")
    config = load_config(Open, file)
    assert config.name == "/scratch/me/run"
    assert config.more == {"a": config.name, "b": [config.name, 1], "c": [config.name, 1]}
    assert "oc.env" not in config_to_yaml(config)


def test_the_list_is_documented():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ENVIRONMENT)


def test_a_config_of_ours_is_far_from_every_limit():
    for file in (ROOT / "configs").rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        check_yaml(text * 20 if "---" not in text else text)
    check_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    check_interpolations({"a": 1, "b": ["${a}"], "c": None, "d": "???"})


@dataclass
class Sizes:
    sizes: list[int] = field(default_factory=lambda: [1, 2])


def test_sections_are_no_numbers_of_a_list(tmp_path):
    """They were taken, and the config could not be saved."""
    file = tmp_path / "a.yaml"
    file.write_text("sizes: [1, 2, 0: ]\n")
    with pytest.raises(UserError, match=r"'sizes\[2\]': Value '\{0: None\}' of type 'dict'"):
        load_config(Sizes, file)


@dataclass
class Rates:
    rate: float = 0.1


def test_numbers_beyond_all_floats(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("rate: " + "1" * 400 + "\n")
    with pytest.raises(UserError, match="'rate': the number is too large"):
        load_config(Rates, file)
    with pytest.raises(UserError, match="'rate': the number is too large"):
        load_config(Rates, None, ["rate=" + "1" * 400])
    with pytest.raises(ValueError, match="rate"):
        typed(Rates, {"rate": int("1" * 400)}, "arch")
