"""What a tar shard holds and where: the index that makes a WebDataset shard a random-access file.

A sample is all members with the same key, wherever they stand in the shard; samples are in the order of their first
members. Images, `cls` (a label), `txt` (captions), `json` (either, where those are not there) and the arrays that
`extract_codes.py` writes are used; members of other kinds are passed over. Training and scoring read shards through
this index, and nothing is ever extracted to disk.

The index lies beside its shard (`train-000000.tar.index.npz`) and knows the shard's size and a hash of its beginning,
so that one that belongs to another shard, or is damaged, is noticed and made again.

Axes: N samples of the shard, F fields.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.shards.tar_members import (
    IMAGE_KINDS,
    JSON_KIND,
    LABEL_KIND,
    LONGEST_NAME,
    MAX_CLASSES,
    described_in_json,
    json_label,
    key_and_kind,
    label_of,
    whole_members,
)
from runtime.atomic import sha256_of_file
from runtime.npz import unpacked_arrays

INDEX_SUFFIX = ".index.npz"
FIELDS = ("image", "txt", "latent.npy", "codes.npy", "cond.npy", JSON_KIND)
CAPTION, LATENT, CODES, COND, JSON_CAPTION = range(1, len(FIELDS))
IMAGE = 0
NO_LABEL = -1
_VERSION = 2  # 1: a sample was a run of members
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class ShardIndex:
    """keys_N: bytes; label_N: int64, NO_LABEL where there is none; start_NF and size_NF: int64, in bytes, size -1 where
    a sample has no such member, or its `json` no caption; shard_size in bytes; head: hash of the shard's beginning.
    """

    keys_N: np.ndarray
    label_N: np.ndarray
    start_NF: np.ndarray
    size_NF: np.ndarray
    shard_size: int
    head: str

    def __len__(self) -> int:
        return len(self.label_N)

    def to_bytes(self) -> bytes:
        """The content of an index file."""
        arrays: dict[str, Any] = {
            "keys": self.keys_N,
            "label": self.label_N,
            "start": self.start_NF,
            "size": self.size_NF,
        }
        arrays |= {"shard": np.array([_VERSION, self.shard_size]), "head": np.array(self.head)}
        file = io.BytesIO()
        np.savez(file, digest=np.array(_digest(arrays)), **arrays)
        return file.getvalue()


def largest_index(shard_size: int) -> int:
    """Bytes that the index of a shard has at the most: every sample takes 512 of the shard."""
    return (1 << 16) + 4 * shard_size


def index_from_bytes(content: bytes) -> ShardIndex | None:
    """The inverse of `to_bytes`; None for anything damaged, of another version, or that no shard can have: numbers that
    lead out of it, labels that are none.
    """
    try:
        arrays = unpacked_arrays(content)
        digest = str(arrays.pop("digest"))
        if digest != _digest(arrays) or arrays["shard"][0] != _VERSION:
            return None
        index = ShardIndex(
            arrays["keys"],
            arrays["label"],
            arrays["start"],
            arrays["size"],
            int(arrays["shard"][1]),
            str(arrays["head"]),
        )
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return index if _is_possible(index) else None


def _is_possible(index: ShardIndex) -> bool:
    keys_N, label_N, start_NF, size_NF = index.keys_N, index.label_N, index.start_NF, index.size_NF
    shape_NF = (*label_N.shape, len(FIELDS))
    if any(numbers.dtype != np.int64 for numbers in (label_N, start_NF, size_NF)) or keys_N.dtype.kind != "S":
        return False
    if label_N.ndim != 1 or keys_N.shape != label_N.shape or (start_NF.shape, size_NF.shape) != (shape_NF, shape_NF):
        return False
    if not len(label_N):
        return True
    return bool(
        keys_N.dtype.itemsize <= LONGEST_NAME
        and NO_LABEL <= label_N.min()
        and label_N.max() < MAX_CLASSES
        and start_NF.min() >= 0
        and size_NF.min() >= -1
        and size_NF.max() <= index.shard_size
        and (start_NF <= index.shard_size - size_NF.clip(0)).all()
        and (size_NF[:, (IMAGE, LATENT, CODES)] >= 0).any(axis=1).all()
        and len(np.unique(keys_N)) == len(keys_N)
    )


def scan_shard(file: BinaryIO, name: str) -> ShardIndex:
    """Reads the headers of an uncompressed tar file.

    Raises:
        ValueError: one line, for what is no such file, is cut short, has links in it or names that lead out of it, two
            members of one kind under one key, or a label that is none.
    """
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    head = head_of(file)
    rows = _Rows(name)
    try:
        for member in whole_members(file):
            _check_member(member, name)
            rows.add(file, member)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name} is not a whole uncompressed tar file: {error}") from error
    return rows.index(size, head)


def describes(index: Path, shard: Path) -> bool:
    """Whether an index file is that of a shard as this version makes it: one of an earlier version is replaced."""
    with open(shard, "rb") as file:
        return index.read_bytes() == scan_shard(file, str(shard)).to_bytes()


def head_of(file: BinaryIO) -> str:
    """Hash of the first bytes of a shard, read from where the file stands."""
    return hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()


def write_index(shard: Path) -> tuple[ShardIndex, str]:
    """Indexes a local shard beside it; returns the index and the SHA-256 of its file."""
    with open(shard, "rb") as file:
        index = scan_shard(file, str(shard))
    path = Path(f"{shard}{INDEX_SUFFIX}")
    write_bytes_atomically(path, index.to_bytes())
    return index, sha256_of_file(path)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Renames a complete file into place; several processes may do so at once. OSError when it cannot be written."""
    partial = path.parent / f".partial-{os.getpid()}-{path.name}"
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Rows:
    """The samples of a shard as its members come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[str, int] = {}  # of keys
        self.labels: list[int] = []
        self.json_labels: dict[int, tuple[Any, str]] = {}  # as they stand there, and the member
        self.starts: list[list[int]] = []
        self.sizes: list[list[int]] = []

    def add(self, file: BinaryIO, member: tarfile.TarInfo) -> None:
        key, kind = key_and_kind(member.name)
        if not member.isreg() or not key or not kind:
            return
        row = self.rows.setdefault(key, len(self.rows))
        if row == len(self.labels):
            self.labels.append(NO_LABEL)
            self.starts.append([0] * len(FIELDS))
            self.sizes.append([-1] * len(FIELDS))
        if kind == LABEL_KIND:
            self._refuse_second(key, kind, self.labels[row] != NO_LABEL)
            self.labels[row] = self._of_shard(label_of, file, member)
            return
        if kind == JSON_KIND:
            label, captions = described_in_json(file, member)
            if label is not None:
                self.json_labels[row] = label, member.name
            if not captions:
                return
        kind = "image" if kind in IMAGE_KINDS else kind
        if kind in FIELDS:
            field = FIELDS.index(kind)
            self._refuse_second(key, kind, self.sizes[row][field] >= 0)
            self.starts[row][field], self.sizes[row][field] = member.offset_data, member.size

    def _refuse_second(self, key: str, kind: str, there_is_one: bool) -> None:
        if there_is_one:
            raise ValueError(f"{self.name} has two {kind} members under the key {key[:80]!r}; a key is one sample")

    def _of_shard(self, label: Callable[..., int], *arguments: Any) -> int:
        try:
            return label(*arguments)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def index(self, size: int, head: str) -> ShardIndex:
        """The samples with an image, latents or codes: there may be none."""
        size_NF = np.array(self.sizes, dtype=np.int64).reshape(-1, len(FIELDS))
        start_NF = np.array(self.starts, dtype=np.int64).reshape(-1, len(FIELDS))
        kept_N = np.any(size_NF[:, (IMAGE, LATENT, CODES)] >= 0, axis=1)
        for row, (label, member) in self.json_labels.items():
            if kept_N[row] and self.labels[row] == NO_LABEL:
                self.labels[row] = self._of_shard(json_label, label, member)
        label_N = np.array(self.labels, dtype=np.int64)
        keys_N = np.array([os.fsencode(key) for key in self.rows], dtype=np.bytes_)
        return ShardIndex(keys_N[kept_N], label_N[kept_N], start_NF[kept_N], size_NF[kept_N], size, head)


def _check_member(member: tarfile.TarInfo, name: str) -> None:
    parts, shown = member.name.replace("\\", "/").split("/"), repr(member.name[:80])
    if (length := len(os.fsencode(member.name))) > LONGEST_NAME:
        raise ValueError(f"{name} is refused: its member {shown} has a name of {length} bytes, at most {LONGEST_NAME}")
    if ".." in parts or member.name.startswith(("/", "\\")):
        raise ValueError(f"{name} is refused: its member {shown} has a name that leads out of the archive")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise ValueError(f"{name} is refused: its member {shown} is not a plain file")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
