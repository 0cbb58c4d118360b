"""Data sets that are folders of image files: `imagenet`, `ffhq` and `folder`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.config import DatasetConfig
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import Chosen, PackedPaths
from data.images.file_dataset import FileDataset
from data.images.listing import holds_image, list_images
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name

IMAGENET_LAYOUT = "train/<class>/*.JPEG and val/<class>/*.JPEG"
FFHQ_LAYOUT = "00000.png ... 69999.png (sub-folders allowed)"
FOLDER_LAYOUT = "images, or one folder of images per class, directly or in train/ and val/"
_FFHQ_TRAINING_IMAGES = 60_000


def build_imagenet(request: DatasetRequest) -> ImageDataset:
    """ImageNet's two folders; the sorted class folders (WordNet ids) give the usual 1000 labels."""
    return _presplit(request, find_root(request.config, IMAGENET_LAYOUT), IMAGENET_LAYOUT)


def build_folder(request: DatasetRequest) -> ImageDataset:
    """Any images. Folders train/ and val/ are the splits; without them val_fraction of each class is held out.

    Nothing is known about them, so they are cropped as ImageNet's (the short side to R, a random or centre R x R crop,
    mirrored in training) unless dataset.transforms and dataset.hflip say otherwise.
    """
    config, root = request.config, find_root(request.config, FOLDER_LAYOUT)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return _presplit(request, root, FOLDER_LAYOUT)
    paths, labels_N, class_names = scan_classes(config, root, FOLDER_LAYOUT)
    train_N, val_N = split_by_name(paths, config.val_fraction or VAL_FRACTION, config.split_seed)
    chosen = train_N if request.split == "train" else val_N
    source = Chosen(PackedPaths(root, paths), chosen)
    return FileDataset(request, source, labels_N[chosen], class_names)


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
    paths = list_images(root)
    if not paths:
        raise missing(config, root, layout)
    folder_N = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    loose, found = folder_N.count(""), sorted(set(folder_N))
    if loose and (known or loose < len(paths)):
        raise ValueError(f"{config.name}: {root} holds {loose} images outside of class folders; move them into one")
    if loose:
        return paths, np.zeros(len(paths), dtype=np.int64), [config.name]
    class_names = found if known is None else known
    number = {name: label for label, name in enumerate(class_names)}
    if unknown := [name for name in found if name not in number]:
        raise ValueError(f"{config.name}: {root} has a class {unknown[0]!r} that the training images do not have")
    return paths, np.array([number[name] for name in folder_N], dtype=np.int64), class_names


def _presplit(request: DatasetRequest, root: Path, layout: str) -> ImageDataset:
    split, known = request.split, None
    if split == "val" and (root / "train").is_dir():
        with os.scandir(root / "train") as entries:
            known = sorted(entry.name for entry in entries if _is_class_folder(entry)) or None
    paths, labels_N, class_names = scan_classes(request.config, root / split, layout, known)
    return FileDataset(request, PackedPaths(root / split, paths), labels_N, class_names)


def _is_class_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and holds_image(entry.path)
