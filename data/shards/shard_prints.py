"""Whether shards are still what a run was begun with: size and time of each, and the hash that its manifest says.

The names, sizes and labels of samples (`data.fingerprint`) stay when the bytes of an image are exchanged in place. Size
and time are compared first; only a shard whose time has changed (a copy of the data, a touched file) is hashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.config import SPLITS
from data.dataset import ImageDataset
from data.shards.shard_dataset import ShardSamples
from data.shards.shard_files import is_remote, local_path
from data.shards.shard_manifest import read_manifest
from runtime.atomic import sha256_of_file
from runtime.errors import UserError


@dataclass(frozen=True)
class ShardPrint:
    """One local shard: bytes, time of its last change in ns, and the SHA-256 of its manifest; empty without one."""

    name: str
    size: int
    time: int
    sha256: str = ""


def shard_prints(dataset: ImageDataset) -> list[ShardPrint]:
    """Of the local shards of a data set, in order; none where it has no shards."""
    source = getattr(dataset, "source", None)
    if not isinstance(source, ShardSamples):
        return []
    paths = [local_path(place) for place in source.files.places if not is_remote(place)]
    hashes = {folder: _hashes_in(folder) for folder in {path.parent for path in paths}}
    prints = []
    for path in paths:
        status = path.stat()
        sha256 = hashes[path.parent].get(path.name, "")
        prints.append(ShardPrint(path.name, status.st_size, status.st_mtime_ns, sha256))
    return prints


def touched(then: Sequence[ShardPrint], dataset: ImageDataset) -> list[tuple[ShardPrint, Path]]:
    """The shards whose size or time is not what it was, with where they lie now. None where other shards are read: that
    is the fingerprint's matter.
    """
    now = shard_prints(dataset)
    if not now or [shard.name for shard in then] != [shard.name for shard in now]:
        return []
    paths = [local_path(place) for place in dataset.source.files.places]  # type: ignore[attr-defined]  # it has prints
    return [
        (before, path)
        for before, after, path in zip(then, now, paths)
        if (before.size, before.time) != (after.size, after.time)
    ]


def is_changed(before: ShardPrint, path: Path) -> bool | None:
    """Whether a touched shard holds other bytes than it did; None where nobody knows what it held."""
    if path.stat().st_size != before.size:
        return True
    return sha256_of_file(path) != before.sha256 if before.sha256 else None


def as_json(prints: Sequence[ShardPrint]) -> list[dict[str, Any]]:
    """For a file of the run."""
    return [asdict(shard) for shard in prints]


def from_json(content: Any) -> list[ShardPrint]:
    """The inverse of `as_json`; empty for what it did not write."""
    try:
        prints = [ShardPrint(**shard) for shard in content]
    except TypeError:
        return []
    right = all(isinstance(it.name, str) and type(it.size) is type(it.time) is int for it in prints)
    return prints if right and all(isinstance(it.sha256, str) for it in prints) else []


def _hashes_in(folder: Path) -> Mapping[str, str]:
    """Name -> SHA-256 of the shards that the manifests of a folder name."""
    hashes: dict[str, str] = {}
    for split in SPLITS:
        try:
            manifest = read_manifest(str(folder), split)
        except UserError:  # that of a split which is being written
            continue
        for shard in (manifest or {}).get("shards", ()):
            hashes[shard["name"]] = shard["sha256"]
    return hashes
