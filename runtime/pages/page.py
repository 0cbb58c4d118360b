"""Pages: HTML from templates that extend `base.html`, complete in one file; nothing in them is loaded from elsewhere.

Every text is escaped, and no control character in it acts; what is HTML already says so by being `Markup`.
"""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rqstack.printable import escaped, printable
from runtime.atomic import write_text_atomically

_HERE = Path(__file__).parent


def write_page(path: Path, template: Path, **content: Any) -> None:
    """Renders a template and writes the page.

    Args:
        path: the HTML file.
        template: extends `base.html`; may import the macros of `parts.html`, which stands beside it.
        content: the names that the template uses; one that is missing is an error.
    """
    write_text_atomically(path, _environment(template.parent).get_template(template.name).render(content))


def embedded_png(data: bytes, alt: str, width: int | None = None) -> Markup:
    """A PNG inside the page.

    Args:
        data: the file.
        alt: what it shows, in words.
        width: in pixels of the page; None leaves it at its own.
    """
    size = "" if width is None else f' width="{width}"'
    encoded = base64.b64encode(data).decode()
    return Markup(f'<img src="data:image/png;base64,{encoded}" alt="{escaped(alt)}"{size}>')


@cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)
