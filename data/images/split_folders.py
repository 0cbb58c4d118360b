"""Which sub-folders of a data set are its splits, by the names that splits usually have."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from data.config import SPLIT_WORDS, TEST, TRAIN, VAL
from data.images.listing import folders_with_images, holds_image, is_image
from runtime.errors import first_few

_NEUTRAL = frozenset(("set", "split", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos"))
_log = logging.getLogger(__name__)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` that a folder's name means, in any case: `Val`, `train2017`, `validation_images`."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in _NEUTRAL]
    return SPLIT_WORDS.get(words[0].removesuffix("set")) if len(words) == 1 else None


def find_splits(name: str, root: Path) -> dict[str, Path] | None:
    """The folder of each split of `root`: {train, val}, or {train} alone; None where its folders are no splits.

    `test` is the validation split where there is no other, and left out where there is.

    Args:
        name: of the data set, for errors.

    Raises:
        ValueError: names that look like splits and are not understood.
    """
    folders = folders_with_images(root)
    kinds = {folder: kind for folder in folders if (kind := split_of(folder)) is not None}
    others = [folder for folder in folders if folder not in kinds]
    found = {kind: [folder for folder in kinds if kinds[folder] == kind] for kind in (TRAIN, VAL, TEST)}
    if not kinds or (others and len(set(kinds.values())) == 1 and not any(_has_folders(root / each) for each in kinds)):
        return None  # one class of several may well be called `train`
    held_out = [*found[VAL], *found[TEST]]
    if not found[TRAIN] or (others and not held_out) or any(len(same) > 1 for same in found.values()):
        shown = first_few([*kinds, *others], 6)
        raise ValueError(
            f"{name}: folders of {root} look like splits and are not understood: {shown}. Expected train and val "
            "(or valid, test, ...); dataset.class_folders=true takes all folders for classes"
        )
    _note_unused(root, [*held_out[1:], *others])
    return {TRAIN: root / found[TRAIN][0], **({VAL: root / held_out[0]} if held_out else {})}


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(not entry.name.startswith(".") and entry.is_dir() and holds_image(entry.path) for entry in entries)


def _note_unused(root: Path, folders: list[str]) -> None:
    with os.scandir(root) as entries:
        loose = sum(is_image(entry.name) and not entry.name.startswith(".") for entry in entries)
    if loose:
        folders = [*folders, f"{loose} images beside the folders"]
    if folders:
        _log.warning("%s: not used beside the splits: %s", root, ", ".join(folders))
