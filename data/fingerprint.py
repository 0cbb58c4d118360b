"""What identifies the images of a run: a resumed run must find the same, and stage 2 must not validate on images that
stage 1 was trained on.

Names and sizes are looked at, not pixels, so that a million images take seconds. Where the data lies is no part of it.

Axes: N images of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.dataset import ImageDataset

_RULE = 1  # of the split and of this file; what was written by another is not compared
_MOST_SIZES = 100_000  # are looked up of larger splits: a network disk takes its time for each
_SEEN = 4096  # every name would be 30 MB of a million images, in each checkpoint and each snapshot
_MARK_BITS = 64


@dataclass(frozen=True)
class SplitPrint:
    """Number of images, and one hash over all names, sizes, labels and captions, in any order."""

    count: int
    digest: str


@dataclass(frozen=True)
class Fingerprint:
    """Of both splits.

    Attributes:
        seen: hash of the name -> size, of the `_SEEN` training images whose hashes are smallest: all of a split that
            has no more; of a larger one a share of `_SEEN` / N, drawn by the hash. A validation split that was cut
            otherwise has most of its images among those of training, and is noticed by any sample.
    """

    train: SplitPrint
    val: SplitPrint
    seen: Mapping[int, int]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint or the metadata of a snapshot."""
        splits = {name: [found.count, found.digest] for name, found in (("train", self.train), ("val", self.val))}
        return {"rule": _RULE, **splits, "seen": {f"{mark:016x}": size for mark, size in self.seen.items()}}

    def share_trained_on(self, val_set: ImageDataset) -> float:
        """The share of validation images, perhaps of another data set, that are among these training images; estimated
        where there are more than `_SEEN`.
        """
        if not self.seen or not len(val_set):
            return 0.0
        highest = max(self.seen) if self.train.count > len(self.seen) else 1 << _MARK_BITS
        marks = [_mark(name) for name in val_set.names()]
        known = [(index, mark) for index, mark in enumerate(marks) if mark in self.seen]
        found = sum(self.seen[mark] == val_set.image_size(index) for index, mark in known)
        return found / max(1, sum(mark <= highest for mark in marks))


def fingerprint(train_set: ImageDataset, val_set: ImageDataset) -> Fingerprint:
    """The fingerprint of the splits of a run."""
    train, mark_N = _read(train_set)
    smallest = np.argsort(mark_N, kind="stable")[:_SEEN].tolist()
    seen = {int(mark_N[index]): train_set.image_size(index) for index in smallest}
    return Fingerprint(train, _read(val_set)[0], seen)


def from_json(content: object) -> Fingerprint | None:
    """The inverse of `as_json`; None for what was written by another rule, or is none."""
    try:
        assert isinstance(content, Mapping)
        if content["rule"] != _RULE:
            return None
        train, val = (SplitPrint(int(content[name][0]), str(content[name][1])) for name in ("train", "val"))
        return Fingerprint(train, val, {int(mark, 16): int(size) for mark, size in content["seen"].items()})
    except (AssertionError, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def _read(dataset: ImageDataset) -> tuple[SplitPrint, np.ndarray]:
    """The print of a split, and the hash of every name (N,)."""
    count, total = len(dataset), 0
    mark_N = np.empty(count, dtype=np.uint64)
    with_size = (1 << _MARK_BITS) * min(_MOST_SIZES, count) // max(1, count)
    for index, (name, label) in enumerate(zip(dataset.names(), dataset.labels_N.tolist(), strict=True)):
        mark_N[index] = mark = _mark(name)
        size = dataset.image_size(index) if mark < with_size else None
        total += int.from_bytes(_hash(f"{name}\n{size}\n{label}", 16), "big")
    digest = _hash(f"{dataset.content_mark()}\n{total % (1 << 128)}", 16)
    return SplitPrint(count, digest.hex()), mark_N


def _mark(name: str) -> int:
    return int.from_bytes(_hash(name, _MARK_BITS // 8), "big")


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
