"""Every key of the YAML files of both stages: `python -m training.configuration > docs/configuration.md`.

Read from the source of the dataclasses, which is not imported: no package is needed, and every Python gives the same
page. What a key means stands under `Attributes:` (or `Args:`) in the docstring of its class, as `name: meaning` or
`name (unit): meaning`, several names with one meaning in one entry.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runtime.cli import ArgumentParser
from runtime.errors import say

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "stage 1": ("training/stages/stage1.py", "Stage1Config"),
    "stage 2": ("training/stages/stage2.py", "Stage2Config"),
}
BOTTLENECKS = ("rqvae/bottleneck.py", "BOTTLENECKS")  # the table of options, and the key below which they stand
OPTIONS_KEY = "arch.hparams.bottleneck"
NAMES_OF_TYPES = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Any": "several"}
INTRO = """# Configuration

Every key of the YAML files, made from the dataclasses behind them by `python -m training.configuration >
docs/configuration.md`. On the command line a key is a word: `experiment.batch_size=16`. A wrong key, type or value is
one line that names the nearest valid one, before any data is touched; `--print-config` shows what a run would take.

A key that is required has no default; where a key takes *several* types, its meaning says which. `configs/` has whole
files, `configs/folder` those to begin with ([your_own_images.md](your_own_images.md)). The options of bottlenecks come
last; which to take when: [quantizers.md](quantizers.md)."""
HEAD = "| key | type | default | unit | meaning |\n|---|---|---|---|---|"
_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: \((?P<unit>[^)]+)\))?: (?P<meaning>.*)")
_HEAD = re.compile(r"^(?:Attributes|Args):\n((?:(?: .*)?(?:\n|$))+)", re.MULTILINE)


@dataclass(frozen=True)
class Meaning:
    """What a docstring says of a key."""

    text: str
    unit: str = ""


@dataclass(frozen=True)
class Key:
    """One field of a dataclass. `default` is as a YAML file would write it, None of a required key; `section` is the
    class of the keys below it.
    """

    name: str
    type: str
    default: str | None
    meaning: Meaning
    section: Section | None


@dataclass(frozen=True)
class Section:
    """A dataclass with the keys that it has and inherits, in their order."""

    name: str
    summary: str
    keys: Mapping[str, Key] = field(default_factory=dict)


@cache
def module(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those of a module, also what it imports for type checkers alone."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.If) else [node]


def binding(file: str, name: str) -> tuple[str, ast.stmt] | None:
    """The file and statement in which a name of a module is defined here; None for what comes from elsewhere."""
    for node in statements(module(file)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return file, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            path = node.module.replace(".", "/")
            found = next((place for place in (f"{path}.py", f"{path}/__init__.py") if (ROOT / place).is_file()), None)
            return None if found is None else binding(found, name)
    return None


@cache
def section_of(file: str, name: str) -> Section | None:
    """The dataclass of that name as seen from a module; None where it is none of ours."""
    found = binding(file, name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return None
    file, node = found[0], found[1]
    docstring = ast.get_docstring(node) or ""
    meanings = meanings_of(docstring)
    keys: dict[str, Key] = {}
    for base in node.bases:
        inherited = section_of(file, base.id) if isinstance(base, ast.Name) else None
        keys |= inherited.keys if inherited else {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
            known = keys[name].meaning if name in keys else Meaning("")
            keys[name] = key_of(file, item, name, meanings.get(name, known))
    for name, meaning in meanings.items():
        assert name in keys, f"{file}: the docstring of {node.name} speaks of {name}, which it does not have"
        keys[name] = Key(name, keys[name].type, keys[name].default, meaning, keys[name].section)
    return Section(node.name, " ".join(docstring.split("\n\n")[0].split()), keys)


def meanings_of(docstring: str) -> dict[str, Meaning]:
    """The entries below `Attributes:` or `Args:`."""
    found: dict[str, Meaning] = {}
    for block in _HEAD.findall(docstring):
        for entry in re.split(r"\n {4}(?=\S)", "\n" + block)[1:]:
            match = _ENTRY.fullmatch(" ".join(entry.split()))
            assert match is not None, f"neither `name: meaning` nor `name (unit): meaning`: {entry}"
            for name in match["names"].split(", "):
                found[name] = Meaning(match["meaning"], match["unit"] or "")
    return found


def key_of(file: str, item: ast.AnnAssign, name: str, meaning: Meaning) -> Key:
    types = list(names_in(item.annotation))
    section = next(filter(None, (section_of(file, part) for part in types)), None)
    return Key(
        name, "section" if section else type_words(item.annotation), default_of(file, item.value), meaning, section
    )


def names_in(annotation: ast.expr) -> Iterator[str]:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id


def type_words(annotation: ast.expr) -> str:
    """`Optional[int]` as `whole number or null`."""
    match annotation:
        case ast.Name(id=name):
            return NAMES_OF_TYPES[name]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return f"{type_words(inner)} or null".replace("true or", "true,")
        case ast.BinOp(left=inner, op=ast.BitOr(), right=ast.Constant(value=None)):
            return f"{type_words(inner)} or null".replace("true or", "true,")
        case ast.Subscript(value=ast.Name(id="List" | "list"), slice=inner):
            return f"list: {type_words(inner)}"
        case ast.Subscript(value=ast.Name(id="Dict" | "dict")):
            return "keys and values"
    raise AssertionError(f"no words for the type {ast.unparse(annotation)}")


def default_of(file: str, value: ast.expr | None) -> str | None:
    """As a YAML file would write it; None for none, empty for a section that has its own."""
    match value:
        case None | ast.Name(id="MISSING"):
            return None
        case ast.Call(func=ast.Name(id="field"), keywords=keywords):
            given = {keyword.arg: keyword.value for keyword in keywords}
            if "default" in given:
                return default_of(file, given["default"])
            match given["default_factory"]:
                case ast.Lambda(body=body):
                    return yaml_words(ast.literal_eval(body))
                case ast.Name(id="list"):
                    return "[]"
                case ast.Name(id="dict"):
                    return "{}"
                case _:
                    return ""
        case ast.Name(id=name):
            found = binding(file, name)
            assert (
                found is not None and isinstance(found[1], (ast.Assign, ast.AnnAssign)) and found[1].value is not None
            )
            return default_of(found[0], found[1].value)
        case ast.Call(func=ast.Name(id=name)) if section_of(file, name):
            return ""
        case ast.Call():
            return ast.unparse(value)  # `math.log(2)`
        case _:
            return yaml_words(ast.literal_eval(value))


def yaml_words(value: Any) -> str:
    """A default as a YAML file would write it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_words, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def rows(section: Section, prefix: str, shown: dict[str, str]) -> Iterator[str]:
    """The rows of a table. `shown`: the classes that are on the page, with the first key that has each."""
    for key in section.keys.values():
        name = f"{prefix}{key.name}"
        meaning, inner = key.meaning.text, key.section
        if inner is not None:
            meaning = meaning or inner.summary
            if inner.name in shown:
                meaning += f" Keys as below `{shown[inner.name]}`."
        assert meaning, f"{section.name}.{key.name} has no meaning: give it one under `Attributes:`"
        default = "required" if key.default is None else f"`{key.default}`" if key.default else ""
        cells = (f"`{name}`", key.type, default, key.meaning.unit, meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        if inner is not None and inner.name not in shown:
            shown[inner.name] = name
            yield from rows(inner, f"{name}.", shown)


def bottlenecks() -> Iterator[tuple[str, Section]]:
    """Name and options of those that have any, as the table says."""
    found = binding(*BOTTLENECKS)
    assert found is not None and isinstance(found[1], ast.AnnAssign) and isinstance(found[1].value, ast.Dict)
    for name, row in zip(found[1].value.keys, found[1].value.values):
        match name, row:
            case ast.Constant(value=str(kind)), ast.Call(args=[ast.Name(id=options), *_]):
                section = section_of(found[0], options)
                assert section is not None, f"{kind}: {options} is no dataclass"
                yield kind, section


def page() -> str:
    """The whole document."""
    places: dict[tuple[str, str], list[str]] = {}
    sections: dict[tuple[str, str], Key] = {}
    for stage, (file, name) in STAGES.items():
        schema = section_of(file, name)
        assert schema is not None
        for key in schema.keys.values():
            place = (key.name, key.section.name if key.section else "")
            places.setdefault(place, []).append(stage)
            sections.setdefault(place, key)
    shown: dict[str, str] = {}
    parts = [INTRO]
    for place, key in sections.items():
        title = f"## `{key.name}` ({' and '.join(places[place])})"
        parts.append("\n".join([title, "", HEAD, *rows(Section("", "", {key.name: key}), "", shown)]))
    for kind, options in bottlenecks():
        title = f"## `{OPTIONS_KEY}` of `bottleneck_type: {kind}` (stage 1)"
        parts.append("\n".join([title, "", HEAD, *rows(options, f"{OPTIONS_KEY}.", shown)]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    for line in page().splitlines():
        say(line)


if __name__ == "__main__":
    ArgumentParser(
        prog="python -m training.configuration",
        description="Every key of the YAML files of both stages, as a page.",
        example="python -m training.configuration > docs/configuration.md",
        takes_words=False,
    ).parse_args()
    main()
