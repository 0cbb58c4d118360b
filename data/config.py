"""The `dataset` section of a config: which images, at which size, from where."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Optional

# The names a config may use, in the order in which errors list them.
DATASET_TYPES = (
    "digits",
    "fashion-mnist",
    "cifar10",
    "imagenet",
    "ffhq",
    "lsun-church",
    "lsun-bedroom",
    "lsun-cat",
    "folder",
    "cc3m",
    "coco",
    "caption-folder",
    "synthetic",
    "synthetic-pairs",
    "shards",
    "latents",
)
SHUFFLES = ("auto", "samples", "shards")
TRANSFORM_NAMES = ("imagenet<R>x<R>", "ffhq<R>x<R>", "LSUN-church|bedroom|cat", "dalle-vqvae", "none")
SPLITS = ("train", "val")
_OTHER_NAMES = {"coco-2014val": "coco"}  # the published scripts call it so
_DEFAULT_RESOLUTION = {"digits": 32, "fashion-mnist": 32, "cifar10": 32, "synthetic": 32, "synthetic-pairs": 32}
_DEFAULT_STYLE = {"imagenet": "imagenet", "folder": "imagenet", "shards": "imagenet", "ffhq": "ffhq"}
_DEFAULT_STYLE |= dict.fromkeys(("cc3m", "coco", "caption-folder"), "dalle")


@dataclass
class DatasetConfig:
    """Published key names first, then ours.

    type: one of DATASET_TYPES (`LSUN-church` and `lsun-church` are the same). transforms: the published name
    (`imagenet256x256`, `ffhq256x256`, `LSUN-cat`, `none`), as a string or as {type: name}; it fixes how an image is
    cropped and, unless `resolution` does, its size. root: see data/README.md for the layouts. vocab_size: the stage-1
    codebook size, read by stage 2.

    val_fraction: share of the images held out where a data set has no validation split of its own (None: 0.2 for
    digits, 0.1 otherwise); which images is decided by split_seed, on purpose not by the seed of the run, so that two
    runs never see each other's validation images. hflip: mirror training images with probability 1/2 (None: as the
    transforms say). random_shift: move training images by up to that many pixels (data sets held in memory).
    num_samples: size of the synthetic training split. max_corrupt: distinct unreadable files tolerated.
    max_image_pixels: larger images count as unreadable (decompression bombs).

    Captions: tokenizer names what turns them into ids: a folder of `python -m data.tokenizers train`, a published pair
    (DIR/bpe-16k), or CLIP's file. Without it txt_tok_name does, one of the published names, whose files are then looked
    for (data/README.md). vocab_size_txt: the most ids there may be. context_length: ids per caption, bpe_dropout: share
    of merges dropped in training. val_captions: which annotation file of coco the validation split reads.

    Shards (types `shards` and `latents`, see docs/data_at_scale.md): root may also be a URL, a brace pattern or a list.
    shuffle: `samples` shuffles everything, `shards` the order of the shards and then within a window of shuffle_window
    of them; auto: shards for URLs, samples for files. Remote shards are kept in the folder shard_cache (None: one below
    the system's temporary folder), at most shard_cache_size at a time.
    """

    type: Optional[str] = None
    transforms: Any = None
    root: Any = None
    vocab_size: Any = None

    # Published keys of text-conditioned data sets.
    dataset: Optional[str] = None
    txt_tok_name: Optional[str] = None
    vocab_size_txt: Optional[int] = None
    image_resolution: Optional[int] = None
    context_length: Optional[int] = None
    bpe_dropout: Optional[float] = None

    tokenizer: Optional[str] = None
    val_captions: Optional[str] = None

    resolution: Optional[int] = None
    val_fraction: Optional[float] = None
    split_seed: int = 0
    hflip: Optional[bool] = None
    random_shift: int = 0
    num_samples: int = 4096
    max_corrupt: int = 100
    max_image_pixels: int = 89_478_485

    shuffle: str = "auto"
    shuffle_window: int = 8
    shard_cache: Optional[str] = None
    shard_cache_size: int = 32

    @property
    def name(self) -> str:
        """The canonical type, one of DATASET_TYPES; ValueError names the choices."""
        given = self.type or self.dataset
        if not given:
            raise ValueError(f"dataset.type is missing; choose one of {', '.join(DATASET_TYPES)}")
        name = str(given).lower().replace("_", "-")
        name = _OTHER_NAMES.get(name, name)
        if name not in DATASET_TYPES:
            near = difflib.get_close_matches(name, DATASET_TYPES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"dataset.type {given!r} is unknown{hint}; choose one of {', '.join(DATASET_TYPES)}")
        return name

    @property
    def in_memory(self) -> bool:
        """True for the data sets that are held in memory or drawn, and so are cropped by no published transform."""
        return self.name in _DEFAULT_RESOLUTION

    def style_and_resolution(self) -> tuple[str, int]:
        """How images are cropped ('imagenet', 'ffhq', 'lsun', 'none') and the side of the result in pixels."""
        style, from_name = _parse_transforms(self.transforms)
        if self.in_memory and style not in (None, "none"):
            raise ValueError(f"dataset.transforms of {self.name} must be 'none' or left out, not {self.transforms!r}")
        if style is None:
            style = "none" if self.in_memory else _DEFAULT_STYLE.get(self.name, "lsun")
        default = _DEFAULT_RESOLUTION.get(self.name)
        resolution = self.resolution or self.image_resolution or from_name or default
        if resolution is None:
            raise ValueError(f"dataset.resolution is missing: {self.name} has no size of its own (try 256)")
        return style, int(resolution)

    def validate(self) -> None:
        """ValueError with one line for a value that cannot work."""
        if self.name != "latents":  # whose size is that of the images they were made from
            self.style_and_resolution()
        self._validate_shards()
        limits = (
            ("resolution", self.resolution, 1),
            ("image_resolution", self.image_resolution, 1),
            ("random_shift", self.random_shift, 0),
            ("num_samples", self.num_samples, 1),
            ("max_corrupt", self.max_corrupt, 0),
            ("max_image_pixels", self.max_image_pixels, 1),
            ("shuffle_window", self.shuffle_window, 1),
            ("shard_cache_size", self.shard_cache_size, 1),
        )
        for key, value, low in limits:
            if value is not None and value < low:
                raise ValueError(f"dataset.{key} must be at least {low}, not {value}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"dataset.val_fraction must lie between 0 and 1, not {self.val_fraction}")
        if self.random_shift and not self.in_memory:
            raise ValueError(f"dataset.random_shift works on data sets held in memory; {self.name} crops by transforms")

    def _validate_shards(self) -> None:
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"dataset.shuffle {self.shuffle!r} is unknown; choose one of {', '.join(SHUFFLES)}")
        given = self.root if isinstance(self.root, (list, tuple)) else [self.root]
        if any(place is not None and not isinstance(place, str) for place in given) or not given:
            raise ValueError(f"dataset.root must be a path, or for shards a list of paths, not {self.root!r}")
        if isinstance(self.root, (list, tuple)) and self.name != "shards":
            raise ValueError(f"dataset.root of {self.name} is one folder; only shards take a list")


def _parse_transforms(transforms: Any) -> tuple[str | None, int | None]:
    """(style, resolution or None) of a published transforms entry, (None, None) for none given."""
    name = transforms.get("type") if hasattr(transforms, "get") else transforms
    if name is None:
        return None, None
    if match := re.fullmatch(r"(imagenet|ffhq)(\d+)x(\d+)(_\w+)?", str(name)):
        if match[2] != match[3]:
            raise ValueError(f"dataset.transforms {name!r} is not square; images are R x R")
        return match[1], int(match[2])
    if re.fullmatch(r"lsun(-(church|bedroom|cat))?", str(name).lower()):
        return "lsun", 256
    if str(name) == "none":
        return "none", None
    if str(name) == "dalle-vqvae":
        return "dalle", None
    raise ValueError(f"dataset.transforms {name!r} is unknown; choose one of {', '.join(TRANSFORM_NAMES)}")
