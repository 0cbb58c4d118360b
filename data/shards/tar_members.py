"""The members of a tar shard: the one place that walks through tar files of samples.

The WebDataset convention: the key of a sample is the name up to the first dot of its last part, the rest says what the
member is. Names are keys and nothing else: nothing is ever written or opened under them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from data.images.listing import IMAGE_EXTENSIONS

IMAGE_KINDS = tuple(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)
LABEL_KIND = "cls"
_LARGEST_LABEL = 32


def whole_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of an uncompressed tar file, in constant memory.

    Raises:
        tarfile.TarError: no such file, a damaged header, or a file that does not end as a tar file does (in blocks of
            zeros): where they are missing or something else follows, part of it is lost.
    """
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            yield member
            tar.members = []  # type: ignore[attr-defined]  # a long shard's headers would pile up; stubs lack the list
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}")


def key_and_kind(name: str) -> tuple[str, str]:
    """(key of the sample, kind in lower case) of a member; an empty kind where its name has no dot."""
    folder, _, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}/{stem}" if folder and stem else stem, kind.lower()


def label_text(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The first bytes of a label's member, more than any number has; tarfile.TarError where the file ends in them."""
    file.seek(member.offset_data)
    text = file.read(min(member.size, _LARGEST_LABEL))
    if len(text) < min(member.size, _LARGEST_LABEL):
        raise tarfile.ReadError("unexpected end of data")
    return text
