"""Text as users bring it: the one reader of prompts, captions, lists of images and texts for tokenizers.

A byte-order mark says UTF-8, UTF-16 or UTF-32 and is no part of the text; a file without one is UTF-8. A line ends at
LF, CR LF or CR and nowhere else: U+2028, U+0085 or a form feed stay inside their line, as JSON has them.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import UserError, one_line

_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_MARK = 4
REPLACEMENT = "\ufffd"
_log = logging.getLogger(__name__)


def encoding_of(beginning: bytes) -> str:
    """The encoding that the first bytes of a text name; UTF-8 where they name none."""
    return next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), "utf-8")


def decoded(content: bytes) -> str:
    """A short text; what is no text in its encoding becomes U+FFFD."""
    return content.decode(encoding_of(content), "replace")


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends; none for an empty one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_text(path: Path) -> str:
    """The whole of a text file.

    Raises:
        UserError: it is no text in its encoding, which names the first byte that is not.
    """
    return "\n".join(read_lines(path))


def read_lines(path: Path, *, replace: bool = False) -> Iterator[str]:
    """The lines of a text file, without their ends, a few in memory at a time.

    Args:
        replace: what is no text in its encoding becomes U+FFFD, and one warning counts such lines; otherwise refused.

    Raises:
        UserError: the file is no text in its encoding.
    """
    with open(path, "rb") as binary:
        encoding = encoding_of(binary.read(_LONGEST_MARK))
    number = damaged = 0
    try:
        with open(path, encoding=encoding, errors="replace" if replace else "strict") as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise UserError(f"{path} is no text file: line {number} has NUL bytes; save it as UTF-8")
                damaged += REPLACEMENT in line
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(_not_text(path, error)) from error
    if damaged and replace:
        _log.warning("%s: %d of %d lines have bytes that are not %s text", path, damaged, number, encoding)


def _not_text(path: Path, error: UnicodeDecodeError) -> str:
    """What is wrong with a file, with the line where that can be said: decoding goes ahead of lines."""
    where = ""
    with open(path, "rb") as binary:
        for number, line in enumerate(binary, start=1):
            if error.encoding.lower() == "utf-8" and REPLACEMENT in line.decode("utf-8", "replace"):
                where = f" in line {number}"
                break
    return f"{path} is not a text file in {error.encoding.upper()}: {error.reason}{where}; save it as UTF-8"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file: {one_line(error)}") from error
