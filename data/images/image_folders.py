"""Folders of image files: their splits and classes; the data sets `imagenet` and `ffhq`.

`folder` and `caption-folder` are built over them in `data.captions.caption_folder`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.config import TRAIN, VAL, DatasetConfig
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import PackedPaths
from data.images.file_dataset import FileDataset
from data.images.listing import folders_with_images, list_images, scan
from data.images.split_folders import find_splits
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name
from runtime.errors import first_few

IMAGENET_LAYOUT = "train/<class>/*.JPEG and val/<class>/*.JPEG"
FFHQ_LAYOUT = "00000.png ... 69999.png (sub-folders allowed)"
_FFHQ_TRAINING_IMAGES = 60_000
_log = logging.getLogger(__name__)
Files = TypeVar("Files", bound=FileDataset)


def no_paths(folder: Path) -> Iterable[str]:
    """No images beside those that are listed."""
    return ()


@dataclass(frozen=True)
class FolderSplit:
    """The images of one split of a folder.

    Attributes:
        paths: below `root`.
        prefix: of their names in a fingerprint: the split, where it has a folder of its own.
        held_out: the splits were cut from one folder, by name.
    """

    root: Path
    paths: Sequence[str]
    labels_N: np.ndarray
    class_names: Sequence[str]
    prefix: str = ""
    held_out: bool = False

    def chosen(self, index_N: np.ndarray) -> FolderSplit:
        """Some of its images."""
        return replace(self, paths=[self.paths[index] for index in index_N.tolist()], labels_N=self.labels_N[index_N])

    def images(self, request: DatasetRequest) -> FileDataset:
        """The data set of its images with their classes."""
        source = PackedPaths(self.root, self.paths)
        return self.marked(FileDataset(request, source, self.labels_N, self.class_names))

    def marked(self, dataset: Files) -> Files:
        """A data set over its images, told how the split was made."""
        dataset.prefix, dataset.held_out = self.prefix, self.held_out
        return dataset


def build_imagenet(request: DatasetRequest) -> ImageDataset:
    """ImageNet's two folders; the sorted class folders (WordNet ids) give the usual 1000 labels."""
    root = find_root(request.config, IMAGENET_LAYOUT)
    splits = {TRAIN: root / TRAIN, VAL: root / VAL}
    if not splits[VAL].is_dir():
        splits |= find_splits(request.name, root) or {}
    return _presplit(request, splits, IMAGENET_LAYOUT).images(request)


def folder_split(
    request: DatasetRequest, layout: str, *, classes: bool = True, also: Callable[[Path], Iterable[str]] = no_paths
) -> FolderSplit:
    """The split of any folder. Folders with the names of splits are the splits; without them val_fraction of all images
    is held out.

    Args:
        classes: sub-folders are classes; else all images are of one.
        also: paths below a folder; those of files that are there are images, whatever they are called.
    """
    config, root = request.config, find_root(request.config, layout)
    splits = None if config.class_folders else find_splits(request.name, root)
    if splits is not None and VAL in splits:
        return _presplit(request, splits, layout, classes, also)
    root = root if splits is None else splits[TRAIN]
    paths, labels_N, class_names = scan_classes(config, root, layout, None, classes, also)
    train_N, val_N = split_by_name(paths, config.val_fraction or VAL_FRACTION, config.split_seed)
    whole = FolderSplit(root, paths, labels_N, class_names, held_out=True)
    return whole.chosen(train_N if request.split == TRAIN else val_N)


def build_ffhq(request: DatasetRequest) -> ImageDataset:
    """FFHQ without labels: images 0 to 59,999 are for training, the others for validation.

    The number is the file's name; where names are not numbers, the place in sorted order.
    """
    root = find_root(request.config, FFHQ_LAYOUT)
    paths = list_images(root)
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError(f"ffhq: {root} holds several images of one name; point dataset.root at one size of the images")
    numbers_N = np.array([int(stem) for stem in stems] if all(map(str.isdecimal, stems)) else range(len(stems)))
    training_N = numbers_N < _FFHQ_TRAINING_IMAGES
    chosen = np.flatnonzero(training_N if request.split == "train" else ~training_N)
    if not len(chosen):
        raise missing(request.config, f"the {request.split} split of {root}", FFHQ_LAYOUT)
    source = PackedPaths(root, [paths[number] for number in chosen])
    return FileDataset(request, source, np.zeros(len(chosen)), [request.name])


def scan_classes(
    config: DatasetConfig,
    root: Path,
    layout: str,
    known: list[str] | None = None,
    classes: bool = True,
    also: Callable[[Path], Iterable[str]] = no_paths,
) -> tuple[list[str], np.ndarray, list[str]]:
    """(relative paths, labels, class names) of a folder: a class per sub-folder that holds images, or one class where
    images lie in the folder itself. `known` gives the classes, if another folder decides them.
    """
    if not root.is_dir():
        raise missing(config, root, layout)
    listing = scan(root)
    images = set(listing.images)
    paths = sorted(images | {path for path in also(root) if path not in images and (root / path).is_file()})
    if not paths:
        raise missing(config, f"{root}{listing.other_files()}", layout)
    one_class = paths, np.zeros(len(paths), dtype=np.int64), [config.name]
    if not classes:
        return one_class
    folder_N = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    loose, found = folder_N.count(""), sorted(set(folder_N))
    if loose and (known or loose < len(paths)):
        raise ValueError(f"{config.name}: {root} holds {loose} images outside of class folders; move them into one")
    if loose:
        return one_class
    class_names = found if known is None else known
    if empty := sorted(set(listing.folders) - set(found)):
        _log.warning("%s: folders without images are no classes: %s", root, first_few(empty, 10))
    number = {name: label for label, name in enumerate(class_names)}
    if unknown := [name for name in found if name not in number]:
        raise ValueError(f"{config.name}: {root} has a class {unknown[0]!r} that the training images do not have")
    return paths, np.array([number[name] for name in folder_N], dtype=np.int64), class_names


def _presplit(
    request: DatasetRequest,
    splits: Mapping[str, Path],
    layout: str,
    classes: bool = True,
    also: Callable[[Path], Iterable[str]] = no_paths,
) -> FolderSplit:
    folder, known = splits[request.split], None
    if classes and request.split == VAL and splits[TRAIN].is_dir():
        known = folders_with_images(splits[TRAIN]) or None
    found = scan_classes(request.config, folder, layout, known, classes, also)
    return FolderSplit(folder, *found, prefix=f"{request.split}/")
