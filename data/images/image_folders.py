"""Data sets that are folders of image files: `imagenet`, `ffhq` and `folder`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.config import DatasetConfig
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import Chosen, PackedPaths
from data.images.file_dataset import FileDataset
from data.images.listing import folders_with_images, list_images, scan
from data.images.split_folders import TRAIN, VAL, find_splits
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name

IMAGENET_LAYOUT = "train/<class>/*.JPEG and val/<class>/*.JPEG"
FFHQ_LAYOUT = "00000.png ... 69999.png (sub-folders allowed)"
FOLDER_LAYOUT = "images, or one folder of images per class, directly or in train/ and val/"
_FFHQ_TRAINING_IMAGES = 60_000
_log = logging.getLogger(__name__)


def build_imagenet(request: DatasetRequest) -> ImageDataset:
    """ImageNet's two folders; the sorted class folders (WordNet ids) give the usual 1000 labels."""
    root = find_root(request.config, IMAGENET_LAYOUT)
    splits = {TRAIN: root / TRAIN, VAL: root / VAL}
    if not splits[VAL].is_dir():
        splits |= find_splits(request.name, root) or {}
    return _presplit(request, splits, IMAGENET_LAYOUT)


def build_folder(request: DatasetRequest) -> ImageDataset:
    """Any images. Folders with the names of splits are the splits; without them val_fraction of all is held out.

    Nothing is known about them, so they are cropped as ImageNet's (the short side to R, a random or centre R x R crop,
    mirrored in training) unless dataset.transforms and dataset.hflip say otherwise.
    """
    config, root = request.config, find_root(request.config, FOLDER_LAYOUT)
    splits = None if config.class_folders else find_splits(request.name, root)
    if splits is not None and VAL in splits:
        return _presplit(request, splits, FOLDER_LAYOUT)
    root = root if splits is None else splits[TRAIN]
    paths, labels_N, class_names = scan_classes(config, root, FOLDER_LAYOUT)
    train_N, val_N = split_by_name(paths, config.val_fraction or VAL_FRACTION, config.split_seed)
    chosen = train_N if request.split == "train" else val_N
    source = Chosen(PackedPaths(root, paths), chosen)
    dataset = FileDataset(request, source, labels_N[chosen], class_names)
    dataset.held_out = True
    return dataset


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
    config: DatasetConfig, root: Path, layout: str, known: list[str] | None = None
) -> tuple[list[str], np.ndarray, list[str]]:
    """(relative paths, labels, class names) of a folder: a class per sub-folder that holds images, or one class where
    images lie in the folder itself. `known` gives the classes, if another folder decides them.
    """
    listing = scan(root) if root.is_dir() else None
    if listing is None or not listing.images:
        raise missing(config, f"{root}{listing.other_files() if listing else ''}", layout)
    paths = listing.images
    folder_N = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    loose, found = folder_N.count(""), sorted(set(folder_N))
    if loose and (known or loose < len(paths)):
        raise ValueError(f"{config.name}: {root} holds {loose} images outside of class folders; move them into one")
    if loose:
        return paths, np.zeros(len(paths), dtype=np.int64), [config.name]
    class_names = found if known is None else known
    if empty := sorted(set(listing.folders) - set(found)):
        _log.warning("%s: folders without images are no classes: %s", root, ", ".join(empty[:10]))
    number = {name: label for label, name in enumerate(class_names)}
    if unknown := [name for name in found if name not in number]:
        raise ValueError(f"{config.name}: {root} has a class {unknown[0]!r} that the training images do not have")
    return paths, np.array([number[name] for name in folder_N], dtype=np.int64), class_names


def _presplit(request: DatasetRequest, splits: Mapping[str, Path], layout: str) -> ImageDataset:
    folder, known = splits[request.split], None
    if request.split == VAL and splits[TRAIN].is_dir():
        known = folders_with_images(splits[TRAIN]) or None
    paths, labels_N, class_names = scan_classes(request.config, folder, layout, known)
    dataset = FileDataset(request, PackedPaths(folder, paths), labels_N, class_names)
    dataset.prefix = f"{request.split}/"
    return dataset
