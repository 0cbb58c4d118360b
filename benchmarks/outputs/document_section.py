"""Sections of documents that a benchmark writes, between two marks."""

from __future__ import annotations

from pathlib import Path

from runtime.atomic import write_text_atomically
from runtime.errors import UserError


def marks(name: str) -> tuple[str, str]:
    """The lines around a section."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the marks; a document that is not there is begun.

    Raises:
        UserError: the document has no such marks.
    """
    begin, end = marks(name)
    document = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    if begin not in document or document.find(end) < document.find(begin):
        raise UserError(f"{path} has no lines {begin} and {end}")
    head, tail = document[: document.index(begin)], document[document.index(end) :]
    write_text_atomically(path, f"{head}{begin}\n{text}\n{tail}")
