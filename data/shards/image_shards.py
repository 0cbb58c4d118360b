"""The images of tar shards as scoring reads them: all members that are images, wherever their labels stand.

Axes: N images.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.shards.tar_members import IMAGE_KINDS, LABEL_KIND, key_and_kind, label_text, whole_members
from runtime.errors import UserError, one_line


class ShardImages:
    """Images of uncompressed tar files in the WebDataset layout: members with the same name up to the first dot belong
    together, such as `000012.jpg` and `000012.cls`. Links, devices and sparse files are passed over.

    Args:
        max_bytes: more than these are not read of a member.

    Attributes:
        labels_N: of every image; None where one has none.

    Raises:
        UserError: a damaged or truncated shard, two images under one name, or a label that is no number.
    """

    def __init__(self, shards: Sequence[Path], max_bytes: int) -> None:
        self.shards, self.max_bytes = tuple(shards), max_bytes
        self.places: list[tuple[int, str, int, int]] = []  # shard, name, first byte, number of bytes
        labels: list[int] = []
        for number, shard in enumerate(shards):
            images, classes = _images_and_labels(shard)
            self.places += [(number, *place) for place in images.values()]
            labels += [classes[key] for key in images if key in classes]
        self.labels_N = labels if labels and len(labels) == len(self.places) else None

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """What an error calls the image."""
        number, member, _, _ = self.places[index]
        return f"{member} of {self.shards[number]}"

    def names(self) -> Iterator[str]:
        """The names of the members."""
        return (member for _, member, _, _ in self.places)

    def size(self, index: int) -> int:
        """Bytes of the member."""
        return self.places[index][3]

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        number, _, start, size = self.places[index]
        with open(self.shards[number], "rb") as file:
            file.seek(start)
            return file.read(min(size, self.max_bytes))


def _images_and_labels(shard: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Name, first byte and size of the image, and the label, of every key of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with open(shard, "rb") as file:
            for member in whole_members(file):
                key, kind = key_and_kind(member.name)
                if not member.isreg() or member.issparse() or not key:
                    continue
                if kind == LABEL_KIND:
                    classes[key] = _class_number(shard, member.name, label_text(file, member))
                elif kind in IMAGE_KINDS:
                    if key in images:
                        names = ", ".join(name.rpartition("/")[2] for name in (images[key][0], member.name))
                        raise UserError(f"{shard} has two images under {key.lstrip('/')}: {names}")
                    images[key] = (member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard} is not a whole uncompressed tar file: {one_line(error)}") from error
    return images, classes


def _class_number(shard: Path, name: str, content: bytes) -> int:
    if not re.fullmatch(rb"\s*\d{1,18}\s*", content):
        raise UserError(f"{name} of {shard} holds {content[:32]!r}; a label must be a number")
    return int(content)
