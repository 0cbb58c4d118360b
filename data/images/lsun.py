"""LSUN, its 30 categories: exported image folders, or the LMDB databases it is distributed as.

The databases need the `lmdb` package. They are read here and not through torchvision, which keeps its list of keys in a
pickle in the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.config import SPLITS, TRAIN, VAL
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import Chosen, Encoded, PackedPaths, checked
from data.images.file_dataset import FileDataset
from data.images.listing import list_images
from data.images.split_folders import find_splits
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name

LSUN_STEMS = {
    "church": "church_outdoor",
    **{
        stem.replace("_", "-"): stem
        for stem in (
            # scenes
            *("bedroom", "bridge", "classroom", "conference_room", "dining_room", "kitchen", "living_room"),
            *("restaurant", "tower"),
            # objects
            *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining_table"),
            *("dog", "horse", "motorbike", "person", "potted_plant", "sheep", "sofa", "train", "tv-monitor"),
        )
    },
}
"""Category -> how the names of its databases begin (Yu et al., arXiv 1506.03365, and its page)."""


def build_lsun(request: DatasetRequest, *, stem: str) -> ImageDataset:
    """One LSUN category without labels; `stem` begins the names of its databases.

    In order of preference: the databases <stem>_train_lmdb and <stem>_val_lmdb, one database <stem> (as objects come)
    or the root itself, two folders of images; from one database, or images in one place, val_fraction is held out.
    """
    split = request.split
    layout = f"{stem}_train_lmdb/ and {stem}_val_lmdb/, or folders of images train/ and val/, or images"
    root = find_root(request.config, layout)
    if (root / f"{stem}_{split}_lmdb").is_dir():
        return _whole(request, LmdbImages(root / f"{stem}_{split}_lmdb"))
    for whole in (root / stem, root):
        if (whole / "data.mdb").is_file():
            return _held_out(request, LmdbImages(whole))
    named = {name: root / f"{stem}_{name}" for name in SPLITS}
    splits = named if all(folder.is_dir() for folder in named.values()) else find_splits(request.name, root) or {}
    if VAL in splits:
        return _whole(request, _images(request, splits[split], layout))
    return _held_out(request, _images(request, splits.get(TRAIN, root), layout))


def _images(request: DatasetRequest, folder: Path, layout: str) -> PackedPaths:
    if not (paths := list_images(folder)):
        raise missing(request.config, folder, layout)
    return PackedPaths(folder, paths)


class LmdbImages:
    """Encoded images of an LMDB database, numbered in the order of their keys."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        with _environment(self.path).begin() as transaction:
            self.keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.keys[index].decode(errors='replace')}"

    def names(self) -> Iterator[str]:
        return (key.decode(errors="surrogateescape") for key in self.keys.tolist())

    def size(self, index: int) -> int:
        return 0  # a look-up of each would read the whole database

    def read(self, index: int) -> bytes:
        with _environment(self.path).begin() as transaction:
            value = transaction.get(bytes(self.keys[index]))
        if value is None:
            raise OSError("the key is gone from the database")
        return checked(value)


# path -> (process, environment). A process may open a database once, whatever the number of data sets over it, and must
# not use one that was opened before it was forked.
_OPEN: dict[str, tuple[int, Any]] = {}


def _environment(path: str) -> Any:
    process, environment = _OPEN.get(path, (None, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()  # of this process only: without locks the parent's stays as it is
        _OPEN[path] = os.getpid(), _open_lmdb(path)
    return _OPEN[path][1]


def _open_lmdb(path: str) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ValueError(
            f"{path} is an LMDB database: install the lmdb package (pip install lmdb), or export the images to a folder"
        ) from None
    return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)


def _whole(request: DatasetRequest, source: Encoded) -> ImageDataset:
    dataset = FileDataset.of_one_class(request, source)
    dataset.prefix = f"{request.split}/"
    return dataset


def _held_out(request: DatasetRequest, source: Encoded) -> ImageDataset:
    config = request.config
    train_N, val_N = split_by_name(source.names(), config.val_fraction or VAL_FRACTION, config.split_seed)
    dataset = FileDataset.of_one_class(request, Chosen(source, train_N if request.split == "train" else val_N))
    dataset.held_out = True
    return dataset
