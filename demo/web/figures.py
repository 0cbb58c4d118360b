"""What the tabs show, as HTML: pictures with a line below each, and commands. Every text is escaped.

A picture is the PNG file itself, byte for byte as a command writes it; the page enlarges it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from markupsafe import Markup
from torch import Tensor

from rqstack.printable import escaped
from runtime.errors import one_line
from runtime.pages.page import embedded_png
from sampling.picture_grids import png_bytes

BLOCKY = 128  # pixels; smaller pictures are shown with their pixels as squares


def picture(image_CHW: Tensor, label: str) -> Markup:
    """A uint8 picture, grey or RGB, with a line below."""
    kind = "blocky" if image_CHW.shape[-1] <= BLOCKY else "smooth"
    image = embedded_png(png_bytes(image_CHW), label)
    return Markup(f'<figure class="{kind}">{image}<figcaption>{escaped(label)}</figcaption></figure>')


def gallery(images: Iterable[Tensor], labels: Sequence[str], kind: str = "") -> Markup:
    """Pictures side by side.

    Args:
        kind: `large` or `small`; else in between.
    """
    figures = Markup("").join(picture(image, label) for image, label in zip(images, labels, strict=True))
    return Markup(f'<div class="pictures {escaped(kind)}">{figures}</div>')


def heading(title: str, text: str) -> Markup:
    """The top of the page."""
    return Markup(f"<h1>{escaped(title)}</h1>{note(text)}")


def note(text: str) -> Markup:
    """A line of text."""
    return Markup(f'<p class="note">{escaped(text)}</p>')


def mistake(error: Exception) -> Markup:
    """What is wrong, in a line."""
    return Markup(f'<p class="mistake" role="alert">error: {escaped(one_line(error))}</p>')


def command(*commands: Sequence[str], files: str = "") -> Markup:
    """What makes the same as is shown; nothing where no command does.

    Args:
        commands: the words of each, without `python`.
        files: which of the files that it writes these are.
    """
    if not commands:
        return Markup()
    where = f"; there: {files}" if files else ""
    lines = "\n".join(escaped(shlex.join(["python", *words])) for words in commands)
    return Markup(f'<div class="command"><p>The same by a command{escaped(where)}</p><pre>{lines}</pre></div>')


def data_address(image_CHW: Tensor) -> str:
    """A picture as the address of an `img`."""
    return str(embedded_png(png_bytes(image_CHW), "")).split('"')[1]


def token_table(texts: Iterable[tuple[str, Sequence[tuple[int, str]]]]) -> Markup:
    """How a tokenizer reads texts: for each the pieces and, below them, their ids."""
    parts = []
    for text, pieces in texts:
        cells = "".join(f"<td>{escaped(piece) or '&nbsp;'}<br><small>{number}</small></td>" for number, piece in pieces)
        parts.append(f"{note(f'{text}: {len(pieces)} tokens')}<table class='tokens'><tr>{cells}</tr></table>")
    return Markup("".join(parts))
