"""The members of a tar shard: the one place that walks through tar files of samples.

The WebDataset convention: the key of a sample is the name up to the first dot of its last part, the rest says what the
member is. Names are keys and nothing else: nothing is ever written or opened under them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from data.images.listing import IMAGE_EXTENSIONS
from data.text_files import decoded

Made = TypeVar("Made")
IMAGE_KINDS = tuple(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)
LABEL_KIND = "cls"
JSON_KIND = "json"
MAX_CLASSES = 1_000_000  # a label at or above it is a mistake: so many class names would be made
LONGEST_NAME = 1024  # bytes; those of all samples stand side by side in memory, each with the length of the longest
_LARGEST_HEADER = 1 << 16  # bytes; a long name or the pairs of a pax header, which have no use for more
_LARGEST_LABEL = 32
_LARGEST_JSON = 1 << 20  # bytes; what is larger describes no label and no caption
_JSON_LABELS, _JSON_CAPTIONS = ("label", "cls", "class"), ("caption", "text")


def whole_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of an uncompressed tar file, in constant memory.

    Raises:
        tarfile.TarError: no such file, a damaged header, or a file that does not end as a tar file does (in blocks of
            zeros): where they are missing or something else follows, part of it is lost.
    """
    file.seek(0)
    tar = _of_headers(lambda: tarfile.TarFile(fileobj=_Headers(file), mode="r"))  # type: ignore[arg-type]  # no more is used
    end = -1
    with tar:
        while (member := _of_headers(tar.next)) is not None:
            if tar.offset <= end or member.size < 0:
                raise tarfile.ReadError(f"a header that leads back at byte {member.offset}")
            end = tar.offset
            yield member
            tar.members = []  # type: ignore[attr-defined]  # a long shard's headers would pile up; stubs lack the list
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}")


class _Headers:
    """A file as `tarfile` sees it while it reads headers, none of which is long."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, more than {_LARGEST_HEADER}")
        return self._read(size)


def _of_headers(step: Callable[[], Made]) -> Made:
    """What a step of `tarfile` gives; TarError for all that headers make it fail with."""
    try:
        return step()
    except (tarfile.TarError, OSError):
        raise
    except Exception as error:  # numbers that are none, headers that follow each other without end
        raise tarfile.ReadError(f"a damaged header ({type(error).__name__})") from error


def key_and_kind(name: str) -> tuple[str, str]:
    """(key of the sample, kind in lower case) of a member; an empty kind where its name has no dot."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}/{stem}" if folder and stem else stem, kind.lower()


def label_of(file: BinaryIO, member: tarfile.TarInfo) -> int:
    """The class in a member of the kind `cls`: a whole number.

    Raises:
        ValueError: it holds something else, or more than `MAX_CLASSES` allow. tarfile.TarError: the file ends in it.
    """
    text = _content(file, member, _LARGEST_LABEL)
    if not text.strip().isdigit() or member.size > len(text):
        raise ValueError(f"{member.name} is no label (a whole number): {text.strip()!r}")
    return checked_label(int(text), member.name)


def checked_label(label: int, place: str) -> int:
    """The label; ValueError, one line, where there cannot be that many classes."""
    if not 0 <= label < MAX_CLASSES:
        raise ValueError(f"{place} has label {str(label)[:40]}; a label is a whole number from 0 to {MAX_CLASSES - 1}")
    return label


def described_in_json(file: BinaryIO, member: tarfile.TarInfo) -> tuple[Any, list[str]]:
    """(label as it stands there, None for none; captions) of a member of the kind `json`.

    Labels are called `label`, `cls` or `class`, captions `caption` or `text` (a string or a list of strings). What is
    no JSON object, or larger than 1 MiB, describes neither.
    """
    if member.size > _LARGEST_JSON:
        return None, []
    return json_label_and_captions(_content(file, member, _LARGEST_JSON))


def json_label_and_captions(content: bytes) -> tuple[Any, list[str]]:
    """As `described_in_json`, of the bytes."""
    try:
        found = json.loads(decoded(content))
    except (ValueError, RecursionError):
        return None, []
    if not isinstance(found, dict):
        return None, []
    label = next((found[key] for key in _JSON_LABELS if found.get(key) is not None), None)
    given: Any = next((found[key] for key in _JSON_CAPTIONS if found.get(key)), [])
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return label, [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def json_label(value: Any, place: str) -> int:
    """A label out of JSON: a whole number, or its digits.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < _LARGEST_LABEL:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{place} has label {value!r:.40}; a label is a whole number from 0 to {MAX_CLASSES - 1}")
    return checked_label(value, place)


def _content(file: BinaryIO, member: tarfile.TarInfo, limit: int) -> bytes:
    """The bytes of a member, at most `limit`; tarfile.TarError where the file ends in them."""
    file.seek(member.offset_data)
    content = file.read(min(member.size, limit))
    if len(content) < min(member.size, limit):
        raise tarfile.ReadError("unexpected end of data")
    return content
