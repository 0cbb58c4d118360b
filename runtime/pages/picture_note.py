"""What a picture file says of itself: the command that made it, in its PNG text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from runtime.atomic import write_bytes_atomically

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMMAND, CREDIT = "Command", "Copyright"


def sign_picture(path: Path, notes: Mapping[str, str]) -> None:
    """Writes notes into a PNG, in the place of those that have the same names; its pixels stay.

    Args:
        notes: keyword of at most 79 letters -> text.

    Raises:
        ValueError: no PNG.
    """
    head, *others = _chunks(path.read_bytes(), path)
    kept = [(kind, data) for kind, data in others if _keyword(kind, data) not in notes]
    new = [(b"iTXt", name.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for name, text in notes.items()]
    write_bytes_atomically(path, _SIGNATURE + b"".join(_packed(*chunk) for chunk in (head, *new, *kept)))


def picture_notes(path: Path) -> dict[str, str]:
    """Keyword -> text of the notes of a PNG that are not compressed."""
    notes = {}
    for kind, data in _chunks(path.read_bytes(), path):
        if kind == b"iTXt" and (name := _keyword(kind, data)) is not None:
            notes[name] = data[len(name) :].split(b"\0", 5)[-1].decode()
        elif kind == b"tEXt":
            keyword, text = data.split(b"\0", 1)
            notes[keyword.decode("latin-1")] = text.decode("latin-1")
    return notes


def _chunks(content: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    if not content.startswith(_SIGNATURE):
        raise ValueError(f"{path} is no PNG")
    place = len(_SIGNATURE)
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += length + 12


def _packed(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _keyword(kind: bytes, data: bytes) -> str | None:
    return data.split(b"\0", 1)[0].decode("latin-1") if kind in (b"iTXt", b"tEXt", b"zTXt") else None
