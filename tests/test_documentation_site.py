"""The documentation site: every promised name and every command has its place, and its Python is Python.

What Sphinx itself finds (missing targets, docstrings that are no text) is an error of `make docs`, which needs the
extra `docs`. Nothing here does. The examples of `docs/api` are run; all other Python blocks of documents are compiled,
and what they import is there (`tests/test_documents.py`).
"""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from tests.repository import ROOT
from tests.test_documents import DOCUMENTS, text_of, tracked

API = sorted((ROOT / "docs/api").glob("*.md"))
RUN_TOO = [ROOT / "docs/index.md", ROOT / "docs/swap_the_quantizer.md"]
WITH_MODELS = "# with trained models\n"
# Their names are those of other libraries: docs/migrating.md has them side by side.
OTHERS_NAMES = "rqstack.quantizers.compat"

_DIRECTIVE = re.compile(r"^\.\. auto(class|function|data|module):: ([\w.]+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"^```\{command-help\} python (?:-m )?(\S+)$", re.MULTILINE)
_ENTRY = re.compile(r"^(?:[^<\n]*<)?([\w./]+)>?$", re.MULTILINE)


def promising_packages() -> list[str]:
    """Packages with an `__all__`."""
    found = []
    for name in tracked():
        if name.endswith("/__init__.py") and "\n__all__" in (ROOT / name).read_text():
            package = name.removesuffix("/__init__.py").replace("/", ".")
            found += [] if package.startswith(OTHERS_NAMES) else [package]
    return found


def documented() -> dict[str, object]:
    """Dotted name -> what it is, for every directive of the API pages; one that is not there fails."""
    found: dict[str, object] = {}
    for kind, name in (match for page in API for match in _DIRECTIVE.findall(page.read_text())):
        if kind == "module":
            found[name] = importlib.import_module(name)
        else:
            package, _, attribute = name.rpartition(".")
            found[name] = getattr(importlib.import_module(package), attribute)
    return found


def test_every_promised_name_has_its_place_on_a_page():
    pages = documented()
    missing = []
    for package in promising_packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            try:
                promised = getattr(module, name)
            except AttributeError:
                promised = importlib.import_module(f"{package}.{name}")
            same = f"{package}.{name}" in pages or any(
                promised is known for known in pages.values() if not isinstance(known, (int, str))
            )
            missing += [] if same else [f"{package}.{name}"]
    assert missing == []


def test_every_promised_name_of_the_libraries_has_an_example():
    blocks = "\n".join(block for page in API for block in _BLOCK.findall(page.read_text()))
    words = set(re.findall(r"\w+", blocks))
    libraries = [name for name in promising_packages() if name.split(".")[0] in ("rqstack", "rqvae", "rqtransformer")]
    names = [(name, promise) for name in libraries for promise in importlib.import_module(name).__all__]
    inner = {"rqtransformer.native", "rqtransformer.decoding"}  # parts of `sample`: the pages have the common ones
    assert [f"{name}.{promise}" for name, promise in names if name not in inner and promise not in words] == []


def commands() -> set[str]:
    """Scripts and modules that are run, but for benchmarks with one measurement each and trials of ours."""
    found = set()
    for name in tracked():
        if name.endswith(".py") and not name.startswith("tests/") and '\nif __name__ == "__main__":' in text_of(name):
            found.add(name.removesuffix("/__main__.py").replace("/", ".") if "/" in name else name)
    return {name.removesuffix(".py") if "." in name.removesuffix(".py") else name for name in found}


def test_every_command_is_shown_with_its_help():
    page = (ROOT / "docs/command_reference.md").read_text()
    shown = set(_HELP.findall(page)) | set(re.findall(r"^\| `python -m (benchmarks\.\w+)`", page, re.MULTILINE))
    assert commands() - {"data.tokenizers.library_trial"} == shown


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text()
    trees = re.findall(r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    listed = {entry for tree in trees for entry in _ENTRY.findall(tree)}
    docs = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert docs - {"index"} <= listed
    named = {(ROOT / "docs" / entry).resolve() for entry in listed - {"self"}}
    assert [
        path for path in named if not any(path.with_name(path.name + end).exists() for end in (".md", ".ipynb"))
    ] == []


@pytest.mark.parametrize("page", API + RUN_TOO, ids=lambda path: path.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    for number, block in enumerate(_BLOCK.findall(page.read_text())):
        if not block.startswith(WITH_MODELS):
            exec(compile(block, f"{page.name}, example {number}", "exec"), {"__name__": f"example_{number}"})


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_python_in_documents_is_python(name):
    for block in _BLOCK.findall(text_of(name)):
        ast.parse(block)


def test_names_of_numbers_are_explained():
    page = (ROOT / "docs/metric_names.md").read_text()
    curves = (ROOT / "training/report/curves.py").read_text()
    used = {name for name in re.findall(r'"(?:train|val)/(\w+)"', curves)}
    assert used and [name for name in used if f"`{name}`" not in page and f"`{name}_by_depth`" not in page] == []


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "docs/metric_names.md"])
def test_keys_that_are_named_are_keys(name):
    known = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
    named = re.findall(r"(?<![\w./-])((?:experiment|optimizer|gan|arch|dataset)\.[a-z]\w*(?:\.\w+)*)", text_of(name))
    assert named and sorted(set(named) - known) == []


def test_the_site_sets_nothing_that_another_host_serves():
    """What the built pages ask for is watched by `make test-web`, in a browser."""
    conf = (ROOT / "docs/conf.py").read_text()
    assert not re.search(r"https?://", conf)
    for path in (ROOT / "docs/_templates").iterdir():
        assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?https?:", path.read_text()), path.name


def test_links_of_the_site_do_not_leave_its_pages():
    """A link to a folder leads nowhere on the site, though a code host shows one."""
    wrong = []
    for name in tracked():
        if name.endswith(".md") and name.partition("/")[0] in ("docs", "data", "README.md", "CONTRIBUTING.md"):
            for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text_of(name)):
                if ((ROOT / name).parent / link).is_dir():
                    wrong.append(f"{name}: {link}")
    assert wrong == []
