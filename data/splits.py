"""Which images are held out for validation where a data set has no validation split of its own.

The side of an image depends on its name, the fraction and the seed, and on nothing else: not on which other images are
there, in which order they are listed, or whether a folder, a list or shards hold them. So images that come or go move
no other image, and a data set of captions over a folder validates on the images that one of classes over it does.

Axes: N images.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from data.images.listing import IMAGE_EXTENSIONS
from data.noise import permutation


def split_by_name(names: Iterable[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices, both sorted: about `fraction` of the images is held out, each by its own name.

    Args:
        names: paths below the root of the data set, with or without the ending of an image, or keys of shards.
        fraction: in (0, 1).
        seed: another seed holds out others.

    Raises:
        ValueError: fewer than two different names.
    """
    draw_N = np.array([_draw(name, seed) for name in names], dtype=np.uint64)
    held_out_N = draw_N < np.uint64(int(fraction * 2.0**64))
    if len(draw_N) and not held_out_N.any():
        held_out_N = draw_N == np.min(draw_N)  # of a handful of images the draw may spare all, or take all
    elif held_out_N.all() and len(draw_N):
        held_out_N = draw_N != np.max(draw_N)
    if held_out_N.all() or not held_out_N.any():
        raise ValueError(
            f"dataset.val_fraction {fraction} of {len(draw_N)} images leaves a split without images; "
            "give at least two, of different names"
        )
    return np.flatnonzero(~held_out_N), np.flatnonzero(held_out_N)


def split_name(name: str) -> str:
    """The name as the split sees it: without the ending of an image, and as one spelling of the same letters."""
    if name.lower().endswith(IMAGE_EXTENSIONS):
        name = name.rpartition(".")[0]
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _draw(name: str, seed: int) -> int:
    text = f"{seed}\n{split_name(name)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def stratified_split(labels_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The split of the bundled digits, which have no names: (train, validation) indices, both sorted; of every class a
    rounded `fraction`, chosen by seed, is held out.
    """
    held_out = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        count = round(len(members) * fraction)
        held_out[members[permutation(len(members), seed, int(label))[:count]]] = True
    if held_out.all() or not held_out.any():
        raise ValueError(f"dataset.val_fraction {fraction} of {len(labels_N)} images leaves a split without images")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
