"""Encoded images in folders and in WebDataset tar shards, decoded by threads in a fixed order.

Names inside an archive are keys and nothing else: nothing is ever written or opened under them. Axes: H W image,
C channels, N images.
"""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from runtime.errors import UserError, one_line

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
MAX_IMAGE_PIXELS = 89_478_485  # as for data sets: beyond it, a small file may be made to fill the memory
MAX_ENCODED_BYTES = 1 << 28
MAX_SHARDS = 1_000_000
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
_SAMPLE_NAME = re.compile(r"\d+_class(\d+)\.")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def decode_rgb(encoded: bytes) -> np.ndarray:
    """uint8 (H, W, 3) of an encoded image, as Pillow converts it to RGB; the orientation tag of a camera is ignored.

    Raises:
        ValueError, OSError: not a whole image, more than 8 bits a channel, or more than `MAX_IMAGE_PIXELS`.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_IMAGE_PIXELS}")
        if image.mode in _DEEP_MODES:
            raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}): convert it first")
        return np.asarray(image.convert("RGB"))


class FileImages:
    """All images below a folder in the sorted order of their relative paths; hidden files are left out.

    Attributes:
        labels_N: read from names such as `000012_class7.png`, when all have one; else None.
    """

    def __init__(self, root: Path, name: str | None = None):
        self.root, self.name = root, name or str(root)
        self.paths = sorted(_images_below(root))
        matches = [_SAMPLE_NAME.match(os.path.basename(path)) for path in self.paths]
        self.labels_N = [int(match[1]) for match in matches] if all(matches) and matches else None

    def __len__(self) -> int:
        return len(self.paths)

    def label(self, index: int) -> str:
        """What an error calls the image."""
        return str(self.root / self.paths[index])

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        with open(self.root / self.paths[index], "rb") as file:
            return file.read(MAX_ENCODED_BYTES)

    def leave_out(self, indices: set[int]) -> None:
        """Removes images; the others move up."""
        self.paths, self.labels_N = (_without(values, indices) for values in (self.paths, self.labels_N))


class ShardImages:
    """Images of uncompressed tar files in the WebDataset layout: members with the same name up to the first dot belong
    together, such as `000012.jpg` and `000012.cls`. Links, devices and sparse files are passed over.

    Raises:
        UserError: a damaged or truncated shard, two images under one name, or a label that is no number.
    """

    def __init__(self, name: str, shards: list[Path]):
        self.name, self.shards = name, shards
        self.places: list[tuple[int, str, int, int]] = []  # shard, name, first byte, number of bytes
        labels: list[int | None] = []
        for number, shard in enumerate(shards):
            images, classes = _members(shard)
            for key, (member, start, size) in images.items():
                self.places.append((number, member, start, size))
                labels.append(classes.get(key))
        self.labels_N = None if None in labels or not labels else labels

    def __len__(self) -> int:
        return len(self.places)

    def label(self, index: int) -> str:
        """What an error calls the image."""
        number, member, _, _ = self.places[index]
        return f"{member} of {self.shards[number]}"

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        number, _, start, size = self.places[index]
        with open(self.shards[number], "rb") as file:
            file.seek(start)
            return file.read(min(size, MAX_ENCODED_BYTES))

    def leave_out(self, indices: set[int]) -> None:
        """Removes images; the others move up."""
        self.places, self.labels_N = (_without(values, indices) for values in (self.places, self.labels_N))


Encoded = FileImages | ShardImages


def decode_all(
    files: Encoded, indices: Iterable[int], threads: int | None = None
) -> Iterator[tuple[int, np.ndarray | UserError]]:
    """(index, uint8 (H, W, 3)) in the order of `indices`; an image that cannot be decoded gives the error instead."""
    threads = threads or min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    indices = iter(indices)
    waiting: deque[tuple[int, Future]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for index in islice(indices, 4 * threads - len(waiting)):
                waiting.append((index, pool.submit(_decoded, files, index)))
            if not waiting:
                return
            index, future = waiting.popleft()
            yield index, future.result()
    finally:
        # Not waited for: an abandoned generator may be collected in one of these very threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(files: Encoded, index: int) -> np.ndarray | UserError:
    try:
        return decode_rgb(files.read(index))
    except _UNREADABLE as error:
        return UserError(f"{files.label(index)} cannot be read: {one_line(error)}")


def expand_shards(spec: str) -> list[Path]:
    """The shards that a name stands for: one `.tar`, `{000..009}` and `*` patterns, or a folder of `.tar` files.

    Empty when it does not stand for shards. UserError when shards are missing, or lie among images.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if shards and next(_images_below(path), None) is not None:
            raise UserError(f"{spec} holds both images and .tar files; name the one you mean")
        return shards
    if path.suffix != ".tar":
        return []
    shards = []
    for name in _braces_expanded(str(path)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if missing := [place for place in found if not os.path.isfile(place)] or ([] if found else [name]):
            raise UserError(f"no shard {missing[0]}")
        shards += map(Path, found)
    return shards


def _braces_expanded(name: str) -> list[str]:
    match = _BRACES.search(name)
    if not match:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise UserError(f"{name}: {match[0]} must count upwards, over at most {MAX_SHARDS} shards")
    before, after = name[: match.start()], name[match.end() :]
    numbers = [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return [before + number + rest for number in numbers for rest in _braces_expanded(after)]


def _members(shard: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Name, first byte and size of the image, and the label, of every key of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}"
                if extension == "cls":
                    classes[key] = _class_number(shard, member.name, archive.extractfile(member).read(32))
                elif stem and f".{extension.lower()}" in IMAGE_EXTENSIONS:
                    if key in images:
                        raise UserError(f"{shard} has two images under {key.lstrip('/')}: {images[key][0]}, {base}")
                    images[key] = (member.name, member.offset_data, member.size)
            _check_end(shard, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard} is not a whole uncompressed tar file: {one_line(error)}") from error
    return images, classes


def _class_number(shard: Path, name: str, content: bytes) -> int:
    if not re.fullmatch(rb"\s*\d{1,18}\s*", content):
        raise UserError(f"{name} of {shard} holds {content[:32]!r}; a label must be a number")
    return int(content)


def _check_end(shard: Path, end: int) -> None:
    """A tar file ends in blocks of zeros; where they are missing or something else follows, part of it is lost."""
    with open(shard, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off at byte {end}")


def _images_below(root: Path) -> Iterator[str]:
    """Relative POSIX paths, unsorted."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _without(values: list | None, indices: set[int]) -> list | None:
    return None if values is None else [value for index, value in enumerate(values) if index not in indices]
