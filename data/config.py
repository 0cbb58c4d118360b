"""The `dataset` section of a config: which images, at which size, from where."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional

from rqstack.arguments import height_width
from runtime.config import TEXT_OR_LIST

SHUFFLES = ("auto", "samples", "shards")
TRANSFORM_NAMES = ("imagenet<R>x<R>", "ffhq<R>x<R>", "LSUN-<category>", "dalle-vqvae", "none")
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL)
SQUARE = "square"
KEEP = "keep"
RESIZES = (SQUARE, KEEP)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "eval", "evaluation", "dev"), VAL),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
"""What folders, shards and users call the splits. `test` is the validation split where there is no other."""
CropStyle = Literal["imagenet", "ffhq", "lsun", "dalle", "none"]  # what they mean: data/images/transforms.py
MAX_IMAGE_PIXELS = 89_478_485  # beyond it, a small file may be made to fill the memory
MAX_IMAGE_BYTES = 1 << 28  # of one encoded image, wherever it lies
DATASET_HELP = "a data set of data/README.md; a wrong NAME is answered with all of them"
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
BACKGROUND = "white"
NO_CAPTIONS, CAPTION_FILES, CAPTION_NAMES = CAPTIONS = ("none", "files", "names")
_PUBLISHED_SPELLINGS = {"coco-2014val": "coco", "coco-2017val": "coco-2017", "lsun-church-outdoor": "lsun-church"}


@dataclass
class DatasetConfig:
    """Published key names first, then those of text-conditioned data sets, then ours.

    Attributes:
        type: a data set of the table in `data/build.py` (`LSUN-church` and `lsun-church` are the same).
        transforms: the published name of how an image is cropped (`imagenet256x256`, `ffhq256x256`, `LSUN-cat`,
            `dalle-vqvae`, `none`), as text or as {type: name}; it also fixes the size, unless `resolution` does. null:
            as the table of data sets says.
        root: where the files lie; layouts in `data/README.md`. Of shards also a URL, a brace pattern or a list.
        vocab_size: codebook size of stage 1, or one per depth, read by stage 2. null: that of the stage-1 checkpoint.
        dataset: the published name of `type` in text-conditioned files.
        txt_tok_name: a published tokenizer (`bpe16k_huggingface`, `bpe30k_huggingface`, `simple`), whose files are
            looked for where `data/README.md` says; for a config without `tokenizer`.
        vocab_size_txt: the most token ids there may be.
        image_resolution (pixels): the published name of `resolution` in text-conditioned files.
        context_length (tokens): ids per caption; shorter ones are padded, longer ones cut.
        bpe_dropout: share of the merges of the tokenizer that are dropped in training.
        tokenizer: what turns captions into ids: a folder of `python -m data.tokenizers train`, a `tokenizer.json`, a
            published pair (DIR/bpe-16k), or CLIP's file. Without one a data set gives images only.
        val_captions: which annotation file of coco the validation split reads; of coco-karpathy, `val` or `test`.
        captions: of a `folder` (null: none) or `caption-folder` (null: files): `none`, `files` beside the images, or
            the `names` of these.
        resolution (pixels): the side of square images, or with `resize: keep` [height, width]. null: as `transforms` or
            the data set says; of stage 2, that of the stage-1 checkpoint.
        resize: `square` gives squares, cropped as published; `keep` gives images of any shape and keeps their aspect
            ratio, also where a crop style squeezes them: they are scaled until they cover the resolution, and what is
            over is cut off.
        val_fraction: share of the images held out where a data set has no validation split of its own. null: 0.2 for
            digits, 0.1 otherwise.
        split_seed: decides which images are held out; on purpose not the seed of the run, so that two runs never see
            each other's validation images.
        hflip: mirror training images with probability 1/2. null: as the transforms say.
        random_shift (pixels): move training images by up to that much (data sets held in memory).
        num_samples: size of the synthetic training split.
        max_corrupt: distinct unreadable files tolerated.
        max_image_pixels (pixels): larger images count as unreadable (decompression bombs).
        channels: what images are given as: 1 grey, 3 RGB (null too), 4 RGBA.
        background: the colour that shows behind what is transparent, a name or `#rrggbb`. How other pixels are read:
            `data/images/pixel_rule.py`.
        class_folders: all sub-folders of a `folder` are classes, also those called `train` or `val`.
        image_column: of `huggingface`, which column holds the images. null: the only one that can.
        label_column: which column holds the classes. null: the one that is said to, or `label`, if it is there.
        caption_column: which column holds the captions. null: `caption`, `captions`, `text`, `texts` or `sentences`, if
            it is there.
        accept_changed: resume although the images are not those of the run.
        accept_seen: validate stage 2 also on images that stage 1 was trained on.
        shuffle: `samples` shuffles everything, `shards` the order of the shards and then within a window of them; auto:
            shards for URLs, samples for files (`docs/data_at_scale.md`).
        shuffle_window (shards): within which `shuffle: shards` shuffles.
        shard_cache: the folder in which remote shards are kept. null: one below the system's temporary folder.
        shard_cache_size (shards): kept there at most at a time.
    """

    type: Optional[str] = None
    transforms: Any = None
    root: Any = field(default=None, metadata={TEXT_OR_LIST: True})
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
    captions: Optional[str] = None

    resolution: Any = None
    resize: str = SQUARE
    val_fraction: Optional[float] = None
    split_seed: int = 0
    hflip: Optional[bool] = None
    random_shift: int = 0
    num_samples: int = 4096
    max_corrupt: int = 100
    max_image_pixels: int = MAX_IMAGE_PIXELS
    channels: Optional[int] = None
    background: str = BACKGROUND
    class_folders: bool = False
    image_column: Optional[str] = None
    label_column: Optional[str] = None
    caption_column: Optional[str] = None
    accept_changed: bool = False
    accept_seen: bool = False

    shuffle: str = "auto"
    shuffle_window: int = 8
    shard_cache: Optional[str] = None
    shard_cache_size: int = 32

    @property
    def name(self) -> str:
        """The type as the table of data sets spells it; whether it stands there, `data.build.dataset_row` says."""
        given = self.type or self.dataset
        if not given:
            raise ValueError("dataset.type is missing")
        name = str(given).lower().replace("_", "-")
        return _PUBLISHED_SPELLINGS.get(name, name)

    def validate(self) -> None:
        """ValueError with one line for a value that cannot work, whatever the data set."""
        self._validate_shards()
        limits = (
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
        self._validate_size()
        if self.captions not in (None, *CAPTIONS):
            raise ValueError(f"dataset.captions {self.captions!r} is unknown; choose one of {', '.join(CAPTIONS)}")
        if self.channels not in (None, *CHANNELS):
            raise ValueError(f"dataset.channels must be 1 (grey), 3 (RGB) or 4 (RGBA), not {self.channels}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"dataset.val_fraction must lie between 0 and 1, not {self.val_fraction}")

    def _validate_size(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"dataset.resize {self.resize!r} is unknown; choose one of {', '.join(RESIZES)}")
        height, width = height_width("dataset.resolution", self.resolution) if self.resolution is not None else (1, 1)
        if height != width and self.resize == SQUARE:
            raise ValueError(
                f"dataset.resolution [{height}, {width}] is not square: dataset.resize=keep gives images of this shape"
            )

    def _validate_shards(self) -> None:
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"dataset.shuffle {self.shuffle!r} is unknown; choose one of {', '.join(SHUFFLES)}")
        given = self.root if isinstance(self.root, (list, tuple)) else [self.root]
        if any(place is not None and not isinstance(place, str) for place in given) or not given:
            raise ValueError(f"dataset.root must be a path, or for shards a list of paths, not {self.root!r}")


def dataset_words(prefix: str = "") -> dict[str, str]:
    """The settings of a data set as `key=value` words of a command, for its `--help`.

    Args:
        prefix: `dataset.` where they are those of a section.
    """
    explained = {
        "root=DIR": "where its files lie",
        "resolution=N": "side of the images in pixels",
        "val_fraction=SHARE": "held out where there is no validation split",
        "channels=N": "1 grey, 3 RGB, 4 RGBA",
        "background=COLOUR": "behind what is transparent: a name or #rrggbb",
        "captions=WHERE": "of a folder of images: none, files, names",
    }
    named = {word.partition("=")[0] for word in explained}
    others = ", ".join(field.name for field in fields(DatasetConfig) if field.name not in {"type", *named})
    return {f"{prefix}{word}": meaning for word, meaning in explained.items()} | {
        f"{prefix}KEY=VALUE": f"also (data/README.md): {others}"
    }


def parse_transforms(transforms: Any) -> tuple[CropStyle | None, int | None]:
    """(style, resolution or None) of a published transforms entry, (None, None) for none given."""
    name = transforms.get("type") if hasattr(transforms, "get") else transforms
    if name is None:
        return None, None
    if match := re.fullmatch(r"(?:(imagenet)|ffhq)(\d+)x(\d+)(_\w+)?", str(name)):
        if match[2] != match[3]:
            raise ValueError(
                f"dataset.transforms {name!r} is not square; leave the size out of it and give "
                f"dataset.resolution=[height,width] dataset.resize=keep"
            )
        return "imagenet" if match[1] else "ffhq", int(match[2])
    if re.fullmatch(r"lsun([_-][a-z_-]+)?", str(name).lower()):
        return "lsun", 256
    if str(name) == "none":
        return "none", None
    if str(name) == "dalle-vqvae":
        return "dalle", None
    raise ValueError(f"dataset.transforms {name!r} is unknown; choose one of {', '.join(TRANSFORM_NAMES)}")
