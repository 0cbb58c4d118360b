"""Whether a data set suits the model: asked before anything is written.

Legend: L caption tokens.
"""

import logging

import torch

from data import ImageDataset
from data.shards.cached_latents import LatentDataset
from rqstack.arguments import plain_size
from rqtransformer import RQTransformerConfig
from runtime.errors import first_few

_log = logging.getLogger(__name__)


def tokenizer_files(dataset: ImageDataset) -> dict[str, str]:
    """Name -> content of the files of the tokenizer of its captions."""
    return {} if dataset.tokenizer is None else dataset.tokenizer.files()


def check_images(dataset: ImageDataset) -> None:
    """ValueError when there are no images to train on."""
    if isinstance(dataset, LatentDataset):
        raise ValueError("dataset.type latents has no images; stage 1 is trained on the data set they were made from")


def check_resolution(dataset: ImageDataset, size: tuple[int, int], origin: str) -> None:
    """ValueError when the images have another size than the one that `origin` asks for."""
    if dataset.resolution == size:
        return
    (height, width), wanted = dataset.resolution, plain_size(*size)
    shape = f"{width} pixels wide" if height == width else f"{height} pixels high and {width} wide"
    remedy = "" if size[0] == size[1] else f": dataset.resolution=[{size[0]},{size[1]}] dataset.resize=keep"
    raise ValueError(f"dataset.resolution: images of {dataset.name} are {shape}, {origin} is {wanted}{remedy}")


def check_channels(dataset: ImageDataset, channels: int, origin: str) -> None:
    """ValueError when the images have other channels than the model that `origin` names: 1 grey, 3 RGB, 4 RGBA."""
    if dataset.channels != channels and not isinstance(dataset, LatentDataset):  # codes have none
        raise ValueError(
            f"dataset.channels: images of {dataset.name} have {dataset.channels} channels, {origin} has {channels}; "
            "dataset.channels is 1 (grey), 3 (RGB) or 4 (RGBA)"
        )


def check_condition(dataset: ImageDataset, arch: RQTransformerConfig) -> None:
    """ValueError when the data set does not give the condition that the model takes: classes or caption tokens."""
    if arch.block_size_cond > 1:
        _check_captions(dataset, arch)
    elif 1 < arch.vocab_size_cond < dataset.num_classes:
        raise ValueError(
            f"arch.vocab_size_cond={arch.vocab_size_cond} is less than the {dataset.num_classes} classes of "
            f"{dataset.name}"
        )
    elif arch.vocab_size_cond > 1 and dataset.num_classes < 2:
        raise ValueError(
            f"arch.vocab_size_cond={arch.vocab_size_cond} wants classes, and {dataset.name} has none; 1 is a model "
            "without condition"
        )
    elif arch.vocab_size_cond > 1 and dataset.split == "train":
        _warn_of_untrained(dataset, arch.vocab_size_cond)


def images_per_class(dataset: ImageDataset, num_classes: int) -> list[int]:
    """How many training images every class of a model has."""
    return torch.bincount(dataset.labels_N, minlength=num_classes).tolist()


def _warn_of_untrained(dataset: ImageDataset, num_classes: int) -> None:
    without = [label for label, count in enumerate(images_per_class(dataset, num_classes)) if not count]
    if without:
        _log.warning(
            "arch.vocab_size_cond=%d: %d of these classes have no training image (%s) and will not be sampled",
            num_classes,
            len(without),
            first_few(without),
        )


def _check_captions(dataset: ImageDataset, arch: RQTransformerConfig) -> None:
    caption_L = dataset[0].get("cond")
    if caption_L is None:
        raise ValueError(
            f"arch.block_size_cond={arch.block_size_cond} wants a text condition, but {dataset.name} has no captions, "
            "or no tokenizer for them (dataset.tokenizer; `python -m data.tokenizers train` makes one)"
        )
    if len(caption_L) != arch.block_size_cond:
        raise ValueError(
            f"arch.block_size_cond={arch.block_size_cond} does not fit the captions of {dataset.name}, which have "
            f"{len(caption_L)} tokens (dataset.context_length)"
        )
    tokens = 0 if dataset.tokenizer is None else dataset.tokenizer.vocab_size
    if tokens > arch.vocab_size_cond:
        raise ValueError(
            f"arch.vocab_size_cond={arch.vocab_size_cond} is less than the {tokens} tokens that {dataset.name} has"
        )
    if caption_L.max() >= arch.vocab_size_cond:
        raise ValueError(
            f"arch.vocab_size_cond={arch.vocab_size_cond} is too small: captions of {dataset.name} use token "
            f"{caption_L.max()}"
        )
