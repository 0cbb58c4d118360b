"""From config to data set: one visible table."""

from __future__ import annotations

from collections.abc import Callable

from data.captions.caption_folder import build_caption_folder
from data.captions.cc3m import build_cc3m
from data.captions.coco import build_coco
from data.captions.synthetic_pairs import build_synthetic_pairs
from data.captions.synthetic_shapes import build_synthetic
from data.config import SPLITS, DatasetConfig
from data.dataset import ImageDataset
from data.images.binary_formats import build_cifar10, build_fashion_mnist
from data.images.digits import build_digits
from data.images.image_folders import build_ffhq, build_folder, build_imagenet
from data.images.lsun import build_lsun
from data.shards.cached_latents import build_latents
from data.shards.shard_dataset import build_shards

_BUILDERS: dict[str, Callable[[DatasetConfig, str, int], ImageDataset]] = {
    "digits": build_digits,
    "fashion-mnist": build_fashion_mnist,
    "cifar10": build_cifar10,
    "imagenet": build_imagenet,
    "ffhq": build_ffhq,
    "lsun-church": build_lsun,
    "lsun-bedroom": build_lsun,
    "lsun-cat": build_lsun,
    "folder": build_folder,
    "cc3m": build_cc3m,
    "coco": build_coco,
    "caption-folder": build_caption_folder,
    "synthetic": build_synthetic,
    "synthetic-pairs": build_synthetic_pairs,
    "shards": build_shards,
    "latents": build_latents,
}


def build_dataset(config: DatasetConfig, split: str, seed: int = 0) -> ImageDataset:
    """The `split` ('train' or 'val') of the data set a config describes.

    `seed` decides augmentation only (the split itself depends on config.split_seed). ValueError for a wrong setting,
    FileNotFoundError, with the layout expected, when the files are not there; one line each.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    config.validate()
    return _BUILDERS[config.name](config, split, seed)
