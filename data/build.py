"""From config to data set: one visible table.

A new data set is a builder in a file of its own and a row here, which must say how its images are cropped.
"""

from __future__ import annotations

import difflib
from functools import partial

from data.captions.arrow_tables import build_huggingface
from data.captions.caption_folder import build_caption_folder, build_folder
from data.captions.cc3m import build_cc3m
from data.captions.coco import build_coco, build_karpathy
from data.captions.openmoji import build_openmoji
from data.captions.pair_grammar import pair_vocabulary
from data.captions.shape_grammar import shape_vocabulary
from data.captions.synthetic_pairs import build_synthetic_pairs
from data.captions.synthetic_shapes import build_synthetic
from data.config import SPLITS, DatasetConfig
from data.dataset import ImageDataset
from data.images.binary_formats import build_cifar10, build_fashion_mnist
from data.images.digits import build_digits
from data.images.image_folders import build_ffhq, build_imagenet
from data.images.lsun import LSUN_STEMS, build_lsun
from data.request import STORED, DatasetRequest, DatasetRow
from data.shards.cached_latents import build_latents, source_of_latents
from data.shards.shard_dataset import build_shards

DATASETS: dict[str, DatasetRow] = {
    "digits": DatasetRow(build_digits, crop="none", resolution=32),
    "fashion-mnist": DatasetRow(build_fashion_mnist, crop="none", resolution=32),
    "cifar10": DatasetRow(build_cifar10, crop="none", resolution=32),
    "imagenet": DatasetRow(build_imagenet, crop="imagenet"),
    "ffhq": DatasetRow(build_ffhq, crop="ffhq"),
    **{f"lsun-{name}": DatasetRow(partial(build_lsun, stem=stem), crop="lsun") for name, stem in LSUN_STEMS.items()},
    "folder": DatasetRow(build_folder, crop="imagenet", folders=True),
    "cc3m": DatasetRow(build_cc3m, crop="dalle"),
    "coco": DatasetRow(build_coco, crop="dalle"),
    "coco-2017": DatasetRow(partial(build_coco, year=2017), crop="dalle"),
    "coco-karpathy": DatasetRow(build_karpathy, crop="dalle"),
    "huggingface": DatasetRow(build_huggingface, crop="imagenet"),
    "caption-folder": DatasetRow(build_caption_folder, crop="dalle", folders=True),
    "synthetic": DatasetRow(build_synthetic, crop="none", resolution=32, words=shape_vocabulary),
    "synthetic-pairs": DatasetRow(build_synthetic_pairs, crop="none", resolution=32, words=pair_vocabulary),
    "openmoji": DatasetRow(build_openmoji, crop="none", resolution=64),
    "shards": DatasetRow(build_shards, crop="imagenet", many_roots=True),
    "latents": DatasetRow(build_latents, crop="stored"),
}


def dataset_choices() -> str:
    """The names of all data sets, for help and errors; those of LSUN's categories in one word."""
    return ", ".join(dict.fromkeys("lsun-<category>" if name.startswith("lsun-") else name for name in DATASETS))


def dataset_row(config: DatasetConfig) -> DatasetRow:
    """The row of the data set that a config names; ValueError with the choices where it names none of them."""
    choices = f"choose one of {dataset_choices()}"
    if not (config.type or config.dataset):
        raise ValueError(f"dataset.type is missing; {choices}")
    if config.name not in DATASETS:
        near = difflib.get_close_matches(config.name, DATASETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"dataset.type {config.type or config.dataset!r} is unknown{hint}; {choices}")
    return DATASETS[config.name]


def dataset_request(config: DatasetConfig, split: str, seed: int = 0) -> DatasetRequest:
    """What `build_dataset` asks a builder for; ValueError with one line for a wrong setting. No file is looked at."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    request = DatasetRequest(dataset_row(config), config, split, seed)
    request.validate()
    return request


def build_dataset(config: DatasetConfig, split: str, seed: int = 0) -> ImageDataset:
    """The `split` ('train' or 'val') of the data set a config describes.

    `seed` decides augmentation only (the split itself depends on config.split_seed). ValueError for a wrong setting,
    FileNotFoundError, with the layout expected, when the files are not there; one line each.
    """
    request = dataset_request(config, split, seed)
    return request.row.build(request)


def images_behind(config: DatasetConfig) -> DatasetConfig:
    """The data set whose images a config is about: for latents the one they were made from, else itself."""
    return source_of_latents(config) if dataset_row(config).crop == STORED else config
