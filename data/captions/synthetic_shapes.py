"""Procedural coloured shapes with class and caption: any number, any size, no files. For tests and load.

Image i of a split is a pure function of (split, split_seed, i). Its label is the shape; colour, size, background and
place vary freely. Places are not in the caption, so mirroring keeps captions true.

Axes: B batch, C channels, H W image, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.captions.shape_grammar import (
    BACKGROUNDS,
    CAPTION_LENGTH,
    COLOURS,
    SHAPES,
    SIZES,
    shape_caption,
    shape_tokenizer,
)
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.aspect import middle
from data.images.memory_dataset import augment, with_channels
from data.noise import uniforms
from data.request import DatasetRequest
from data.tokenizers.caption_tokenizer import WordTokenizer

_STREAM = {"train": 0x5354, "val": 0x5356}
_JITTER = 12.0  # largest change of a colour channel, of 255
_WORDS = (tuple(SHAPES), tuple(COLOURS), tuple(SIZES), tuple(BACKGROUNDS))


def build_synthetic(request: DatasetRequest) -> ImageDataset:
    """`num_samples` training images; the validation split has val_fraction times as many others."""
    return SyntheticShapes(request)


class SyntheticShapes(ImageDataset):
    """Shapes drawn when asked for. Batches also hold `cond`: caption token ids (B, L)."""

    tokenizer: WordTokenizer

    def __init__(self, request: DatasetRequest) -> None:
        config, split = request.config, request.split
        self.num_images = config.num_samples
        if split == "val":
            self.num_images = max(1, round(config.num_samples * (config.val_fraction or VAL_FRACTION)))
        length = CAPTION_LENGTH if config.context_length is None else config.context_length
        self.tokenizer = shape_tokenizer(length)
        self.split_seed, self.hflip, self.random_shift = config.split_seed, bool(config.hflip), config.random_shift
        draws_N = self._draws(split, np.arange(self.num_images))
        labels_N = _choice(draws_N[:, 0], len(SHAPES))
        super().__init__(request.name, split, request.resolution, SHAPES, labels_N, request.seed)
        self.channels = request.pixels.channels

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        draws_BK = self._draws(self.split, index_B)
        words = _attributes(draws_BK)
        image_BCHW = draw_shapes(words, torch.from_numpy(draws_BK[:, 4:]).float(), max(self.resolution))
        image_BCHW = middle(image_BCHW, self.resolution)
        if noise_key_B is not None and self.split == "train":
            image_BCHW = augment(image_BCHW, self.seed, noise_key_B, self.hflip, self.random_shift)
        return {
            "image": with_channels(image_BCHW, self.channels),
            "label": torch.from_numpy(words[0]),
            "index": torch.from_numpy(index_B),
            "cond": self.tokenizer.encode_batch(_captions(words)),
        }

    def content_mark(self) -> str:
        return f"split_seed {self.split_seed}"

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The captions of these images in words."""
        return _captions(_attributes(self._draws(self.split, np.asarray(index_B, dtype=np.int64))))

    def all_captions(self, index: int) -> list[str]:
        """The one caption of an image."""
        return self.captions([index])

    def _draws(self, split: str, index_B: np.ndarray) -> np.ndarray:
        # shape, colour, size, background | x, y, three channels of colour jitter
        return uniforms(9, _STREAM[split], self.split_seed, index_B)


def draw_shapes(words: list[np.ndarray], draws_B5: Tensor, resolution: int) -> Tensor:
    """uint8 (B, 3, H, W): `words` are the shape, colour, size and background numbers; draws are in [0, 1)."""
    shape_B, colour_B, size_B, background_B = (torch.from_numpy(word_B) for word_B in words)
    radius_B = torch.tensor(list(SIZES.values()))[size_B]
    centre_B2 = (2 * draws_B5[:, :2] - 1) * (1 - radius_B)[:, None]
    coverage_BHW = shape_coverage(SHAPES, shape_B, centre_B2, radius_B, resolution)
    jitter_B3 = (2 * draws_B5[:, 2:] - 1) * _JITTER
    front_B3 = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[colour_B] + jitter_B3
    back_B3 = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[background_B] + jitter_B3
    mix_BCHW = torch.lerp(back_B3[:, :, None, None], front_B3[:, :, None, None], coverage_BHW[:, None])
    return mix_BCHW.round_().clamp_(0, 255).to(torch.uint8)


def shape_coverage(
    names: Sequence[str], shape_B: Tensor, centre_B2: Tensor, radius_B: Tensor, resolution: int
) -> Tensor:
    """Share of every pixel that a shape covers, (B, H, W) in [0, 1]; edges are one pixel wide.

    Args:
        names: shapes of `data.captions.shape_grammar.SHAPES`, of which `shape_B` are the numbers.
        centre_B2: (x, y) with y pointing down; the image is [-1, 1] x [-1, 1].
        radius_B: in the same unit.
    """
    axis = (torch.arange(resolution) + 0.5) * (2 / resolution) - 1
    x_BHW = ((axis - centre_B2[:, :1]) / radius_B[:, None])[:, None, :].expand(-1, resolution, -1)
    y_BHW = ((axis - centre_B2[:, 1:]) / radius_B[:, None])[:, :, None].expand(-1, -1, resolution)
    coverage_BHW = torch.empty(len(shape_B), resolution, resolution)
    for number, name in enumerate(names):
        chosen = (shape_B == number).nonzero().squeeze(1)
        if len(chosen):
            pixels_B = radius_B[chosen] * (resolution / 2)  # pixels per unit of distance
            distance = _distance(name, x_BHW[chosen], y_BHW[chosen])
            coverage_BHW[chosen] = (0.5 - distance * pixels_B[:, None, None]).clamp_(0, 1)
    return coverage_BHW


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance (negative inside) to the outline of a shape that fits the unit circle; y points down."""
    table = {
        "circle": lambda: (x * x + y * y).sqrt() - 1,
        "square": lambda: torch.maximum(x.abs(), y.abs()) - 0.75,
        "triangle": lambda: torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.5,
        "diamond": lambda: (x.abs() + y.abs() - 1) * 0.707,
        "ring": lambda: ((x * x + y * y).sqrt() - 0.78).abs() - 0.22,
        "cross": lambda: torch.maximum(torch.minimum(x.abs(), y.abs()) - 0.28, torch.maximum(x.abs(), y.abs()) - 0.95),
        "bar": lambda: torch.maximum(x.abs() - 0.95, y.abs() - 0.3),
        "dome": lambda: torch.maximum((x * x + (y - 0.4) ** 2).sqrt() - 0.9, y - 0.4),
    }
    return table[shape]()


def _choice(draws_B: np.ndarray, count: int) -> np.ndarray:
    return (draws_B * count).astype(np.int64)


def _attributes(draws_BK: np.ndarray) -> list[np.ndarray]:
    return [_choice(draws_BK[:, column], len(choices)) for column, choices in enumerate(_WORDS)]


def _captions(words: list[np.ndarray]) -> list[str]:
    shape, colour, size, background = ([choices[i] for i in word] for choices, word in zip(_WORDS, words))
    return [shape_caption(*attributes) for attributes in zip(size, colour, shape, background)]
