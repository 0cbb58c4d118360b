"""The documentation site: `make docs` builds it into build/docs.

The source folder is the root of the repository, so that a page's links are the same here and on a code host, and
notebooks and the documents beside the code are pages where they lie.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "rqstack"
author = "The rqstack contributors"
(release,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "rqstack/__init__.py").read_text("utf-8"), re.MULTILINE)
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_help"]
root_doc = f"{Path(__file__).parent.name}/index"

PAGES = {"docs", "notebooks", "data", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in PAGES] + ["**/__pycache__"]
include_patterns = ["docs/**", "notebooks/*.ipynb", "README.md", "data/README.md", "CHANGELOG.md", "CONTRIBUTING.md"]

myst_heading_anchors = 4
nb_execution_mode = "off"
suppress_warnings = ["myst.header"]

default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Legend"]
napoleon_use_ivar = True
autoclass_content = "both"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"rqstack {release}"
# lines of 96 letters, which commands and code here have
html_theme_options = {"light_css_variables": {"code-font-size": "12.4px"}}
html_favicon = "pictures/icon.svg"
html_show_sphinx = False
html_copy_source = False
html_additional_pages = {"index": "to_start.html"}
templates_path = ["_templates"]


def plain_docstring(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings use no markup but backticks: a star or a bar in a formula is one. A table has its type's own none."""
    if what == "data":
        lines.clear()
    lines[:] = [line for line in lines if not line.startswith("Create new instance of ")]  # named tuples
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def is_field_number(app: Any, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """What named tuples say of their fields is nothing: the class says it."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", is_field_number)
