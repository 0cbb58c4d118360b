"""Documents, notebooks, settings and comments speak of what is there: every path, module, name and link resolves.

Modules and names are found by reading the code, without importing it. CHANGELOG.md may name what once was.
"""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
from functools import cache
from pathlib import Path

import nbformat
import pytest

from tests.repository import ROOT

PACKAGES = (
    "benchmarks",
    "data",
    "demo",
    "evaluation",
    "measure_throughput",
    "rqstack",
    "rqtransformer",
    "rqvae",
    "runtime",
    "sampling",
    "scoring",
    "tests",
    "training",
)
FOLDERS = (*PACKAGES, "configs", "docs", "notebooks")
# What a user puts under `data/`, and what the published repository has where.
ELSEWHERE = re.compile(
    r"data/(cc3m|coco|fashion-mnist|tokenizer-files)\b.*|rqvae/txtimg_datasets/tokenizers/pretrained"
)
ENDINGS = (".md", ".ipynb", ".py", ".yaml", ".yml", ".toml", ".txt", ".sbatch", ".sh", ".cff", "Makefile", "Dockerfile")
PAST = "CHANGELOG.md"
MADE_UP = (
    "tests/architecture.py",
    "tests/test_architecture.py",
    "tests/test_documents.py",
)  # patterns, counterexamples

_NAMES = "|".join(PACKAGES)
_DOTTED = re.compile(rf"`+(?:python -m )?((?:{_NAMES})(?:\.\w+)+)(?:\(.*?\))?`")
_COMMAND = re.compile(rf"(?:python3?|-m pytest|torchrun)? -m[ =]((?:{_NAMES})(?:\.\w+)*)(?![\w/]|\.[{{<])")
_PATH = re.compile(rf"(?<![\w./<$~}}-])(?:\./)?((?:{'|'.join(FOLDERS)})/[\w./*{{}},<>$-]*)")
_SCRIPT = re.compile(r"(?<![\w./-])((?:main|compute|extract)_\w+\.py)")
_STRING = re.compile(rf"(?:{_NAMES})(?:\.\w+)+")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def tracked() -> tuple[str, ...]:
    """Files of the repository, as git knows them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def places() -> frozenset[str]:
    """Files and folders."""
    return frozenset(itertools.chain.from_iterable((name, *map(str, Path(name).parents)) for name in tracked()))


@cache
def module_file(name: str) -> Path | None:
    path = name.replace(".", "/")
    return next((ROOT / file for file in (f"{path}.py", f"{path}/__init__.py") if file in places()), None)


@cache
def bindings(file: Path) -> dict[str, ast.AST]:
    """Name -> what a module binds it to, also inside `if` and `try`."""
    return dict(_bound(ast.parse(file.read_text())))


def _bound(scope: ast.AST):
    for node in ast.iter_child_nodes(scope):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.Import() | ast.ImportFrom():
                yield from (((alias.asname or alias.name).split(".")[0], node) for alias in node.names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
                yield from ((part.id, node) for part in names)
            case ast.If() | ast.Try() | ast.With():
                yield from _bound(node)


def resolves(dotted: str) -> bool:
    """Whether `package.module.Name.attribute` is a module, or what one binds; of attributes the first is looked for."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:length]))
        if file is None:
            continue
        if length == len(parts):
            return True
        found = bindings(file).get(parts[length])
        if isinstance(found, ast.ImportFrom):
            (name,) = [alias.name for alias in found.names if parts[length] in (alias.name, alias.asname)]
            origin = ".".join([found.module, name, *parts[length + 1 :]])
            return origin.split(".")[0] not in PACKAGES or resolves(origin)
        if isinstance(found, ast.ClassDef) and length + 1 < len(parts) and not found.bases:
            attributes = {part.attr for part in ast.walk(found) if isinstance(part, ast.Attribute)}
            return parts[length + 1] in attributes | dict(_bound(found)).keys()
        return found is not None
    return False


def runs_as_command(module: str) -> bool:
    return module_file(f"{module}.__main__") is not None or (
        module_file(module) is not None and module_file(module).name != "__init__.py"
    )


def exists(path: str) -> bool:
    """Whether a path is there; `*` stands for anything, `{a,b}` for both. One with a gap to fill in passes."""
    path = path.rstrip("./,-")
    if re.search(r"[<>$]|CONFIG|\{\w+\}", path) or ELSEWHERE.fullmatch(path):
        return True
    if (braces := re.search(r"\{([^{}]*)\}", path)) is not None:
        choices = braces[1].split(",")
        return all(exists(path[: braces.start()] + choice + path[braces.end() :]) for choice in choices)
    return any(ROOT.glob(path)) if "*" in path else path in places()


def wrong_imports(code: str) -> list[str]:
    """What Python code imports of ours that is not there."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # an excerpt with a gap
        return []
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        wrong += [f"import {name}" for name in names if name.split(".")[0] in PACKAGES and not resolves(name)]
    return wrong


def wrong_references(text: str) -> list[str]:
    """Modules, names, commands, paths and imports in code blocks of a text that are not in the repository."""
    return [
        *(f"`{name}`" for name in _DOTTED.findall(text) if not resolves(name) and not exists(name)),
        *(f"-m {name}" for name in _COMMAND.findall(text) if not runs_as_command(name)),
        *(path for path in _PATH.findall(text) if not exists(path)),
        *(name for name in _SCRIPT.findall(text) if name not in places()),
        *itertools.chain.from_iterable(map(wrong_imports, _BLOCK.findall(text))),
    ]


def wrong_links(text: str, folder: Path) -> list[str]:
    """Relative links of a document that lead nowhere, sections of documents included."""
    return [f"({link})" for link in _LINK.findall(text) if not _leads_somewhere(link, folder)]


def _leads_somewhere(link: str, folder: Path) -> bool:
    if re.match(r"[a-z]+:", link):
        return True
    path, _, section = link.partition("#")
    target = (folder / path).resolve() if path else None
    if target is not None and (not target.exists() or not target.is_relative_to(ROOT)):
        return False
    return not section or target is None or section in headings(target.read_text())


def headings(text: str) -> set[str]:
    """The names by which sections of a Markdown document are linked."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def text_of(name: str) -> str:
    """What a file says: of a notebook its cells, with code as blocks."""
    if not name.endswith(".ipynb"):
        return (ROOT / name).read_text()
    cells = nbformat.read(ROOT / name, as_version=4).cells
    blocks = {"markdown": "{}", "code": "```python\n{}\n```"}
    return "\n".join(blocks[cell.cell_type].format(cell.source) for cell in cells)


def wrong_strings(code: str) -> list[str]:
    """Strings of Python code that look like a module or name of ours, as a test patches one, and are none."""
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    dotted = [text for text in strings if isinstance(text, str) and _STRING.fullmatch(text)]
    return [f'"{text}"' for text in dotted if not resolves(text) and text != "data.mdb"]


TEXTS = [name for name in tracked() if name.endswith(ENDINGS) and name != PAST and name not in MADE_UP]
DOCUMENTS = [name for name in tracked() if name.endswith((".md", ".ipynb"))]


@pytest.mark.parametrize("folder", sorted({name.partition("/")[0] for name in TEXTS}))
def test_what_is_spoken_of_is_there(folder):
    wrong = {}
    for name in TEXTS:
        if name.partition("/")[0] == folder:
            text = text_of(name)
            wrong[name] = wrong_references(text) + (wrong_strings(text) if name.endswith(".py") else [])
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    assert wrong_links(text_of(name), (ROOT / name).parent) == []


@pytest.mark.parametrize(
    "text",
    [
        "see `rqvae.quantizers`",
        "`rqstack.quantizers.NoSuchQuantizer(3)`",
        "`data.DatasetConfig.no_such_key`",
        "run `python -m evaluation.reference dataset:digits:val`",
        "python -m rqstack",
        "lies in tests/training/test_resume.py.",
        "configs/demo/stage{1,3}/digits.yaml",
        "tests/training/none_*.py",
        "python main_stage3.py",
        "```python\nfrom rqvae.quantizers import VectorQuantizer\n```",
        "```python\nfrom rqstack.quantizers import NoSuchQuantizer\n```",
    ],
)
def test_what_is_not_there_is_noticed(text):
    assert len(wrong_references(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`rqstack.quantizers.VectorQuantizer(3)` and `data.DatasetConfig.resolution`",
        "`python -m scoring.reference` and `python -m demo`, but -m configs/demo/stage1/digits.yaml",
        "configs/demo/stage{1,2}/digits.yaml and configs/<dataset>/x.yaml, https://host/data/x.zip",
        "```python\nfrom rqstack.quantizers import VectorQuantizer\n```",
    ],
)
def test_what_is_there_passes(text):
    assert wrong_references(text) == []


def test_a_string_and_a_link_to_nowhere_are_noticed():
    assert wrong_strings('patch("training.session.launch")\npatch("runtime.cli.build_parser")') == [
        '"training.session.launch"'
    ]
    text = "[a](README.md) [b](docs/none.md) [c](README.md#no-such-section) [d](../outside.md) [e](https://x.y)"
    assert wrong_links(text, ROOT) == ["(docs/none.md)", "(README.md#no-such-section)", "(../outside.md)"]
