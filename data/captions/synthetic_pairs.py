"""Procedural pictures of two coloured shapes with a caption that says what and where both are. No files.

Image i of a split is a pure function of (split, split_seed, i). Captions are split too: a share of all scenes that the
grammar of `data.captions.pair_grammar` can describe occurs in the validation split only, so that a model is asked for
combinations which it never saw. What captions leave open varies freely: the exact places, the shade of the background
and of the colours.

Axes: B batch, C channels, H W image, L caption tokens, A numbers of a scene, S scenes of a split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.captions.pair_grammar import (
    CAPTION_LENGTH,
    CHOICES,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    pair_vocabulary,
    tokenize_pair_caption,
)
from data.captions.synthetic_shapes import shape_coverage
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.aspect import middle
from data.images.memory_dataset import augment, with_channels
from data.noise import permutation, uniforms
from data.request import DatasetRequest
from data.tokenizers.caption_tokenizer import WordTokenizer

_STREAM = {"train": 0x5054, "val": 0x5056}
_CAPTION_STREAM = 0x5043
_JITTER = 8.0  # largest change of a colour channel, of 255
_DARK = (8.0, 32.0)  # range of the grey behind
_APART = 0.5  # distance of a centre from the middle along the relation, of half the side; the objects never touch
_ALONG, _ACROSS = 0.03, 0.12  # largest displacement of a centre along the relation and across it
_COUNTS = tuple(len(choices) for choices in CHOICES)
NUM_SCENES = math.prod(_COUNTS)


def build_synthetic_pairs(request: DatasetRequest) -> ImageDataset:
    """`num_samples` training images; of scenes and images, the validation split has a share of `val_fraction`."""
    return SyntheticPairs(request)


class SyntheticPairs(ImageDataset):
    """Scenes drawn when asked for. Batches also hold `cond`: caption token ids (B, L). The label is the first shape."""

    def __init__(self, request: DatasetRequest) -> None:
        config, split = request.config, request.split
        if config.hflip:
            raise ValueError("dataset.hflip must be false or left out: mirrored pairs would contradict 'left of'")
        self.context_length = CAPTION_LENGTH if config.context_length is None else config.context_length
        if self.context_length < CAPTION_LENGTH:
            raise ValueError(
                f"dataset.context_length {self.context_length} is too short: captions have up to {CAPTION_LENGTH} words"
            )
        self.tokenizer = WordTokenizer(pair_vocabulary(), self.context_length)
        fraction = config.val_fraction or VAL_FRACTION
        held_out = max(1, round(NUM_SCENES * fraction))
        order_S = permutation(NUM_SCENES, _CAPTION_STREAM, config.split_seed)
        self.scenes_S = np.sort(order_S[:held_out] if split == "val" else order_S[held_out:])
        count = config.num_samples if split == "train" else max(1, round(config.num_samples * fraction))
        self.split_seed, self.random_shift = config.split_seed, config.random_shift
        labels_N = self._numbers(self._draws(split, np.arange(count)))[:, 2]
        super().__init__(request.name, split, request.resolution, SHAPES, labels_N, request.seed)
        self.channels = request.pixels.channels

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        draws_BK = self._draws(self.split, index_B)
        numbers_BA = self._numbers(draws_BK)
        image_BCHW = draw_pairs(numbers_BA, torch.from_numpy(draws_BK[:, 1:]).float(), max(self.resolution))
        image_BCHW = middle(image_BCHW, self.resolution)
        if noise_key_B is not None and self.split == "train":
            image_BCHW = augment(image_BCHW, self.seed, noise_key_B, False, self.random_shift)
        captions = [tokenize_pair_caption(scene.caption(), self.context_length) for scene in _scenes(numbers_BA)]
        return {
            "image": with_channels(image_BCHW, self.channels),
            "label": torch.from_numpy(numbers_BA[:, 2]),
            "index": torch.from_numpy(index_B),
            "cond": torch.tensor(captions),
        }

    def content_mark(self) -> str:
        return f"split_seed {self.split_seed}, {len(self.scenes_S)} scenes"

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The captions of these images in words."""
        return [scene.caption() for scene in self.scenes(index_B)]

    def all_captions(self, index: int) -> list[str]:
        """The one caption of an image."""
        return self.captions([index])

    def scenes(self, index_B: np.ndarray | Sequence[int]) -> list[Scene]:
        """What these images show."""
        return _scenes(self._numbers(self._draws(self.split, np.asarray(index_B, dtype=np.int64))))

    def all_scenes(self) -> list[Scene]:
        """Every scene that this split may show, in the order of the grammar."""
        return _scenes(np.stack(np.unravel_index(self.scenes_S, _COUNTS), axis=1))

    def _draws(self, split: str, index_B: np.ndarray) -> np.ndarray:
        # scene | for each object: along, across, three channels of colour | shade of the background
        return uniforms(12, _STREAM[split], self.split_seed, index_B)

    def _numbers(self, draws_BK: np.ndarray) -> np.ndarray:
        scene_B = self.scenes_S[(draws_BK[:, 0] * len(self.scenes_S)).astype(np.int64)]
        return np.stack(np.unravel_index(scene_B, _COUNTS), axis=1)


def draw_pairs(numbers_BA: np.ndarray, draws_B11: Tensor, resolution: int) -> Tensor:
    """uint8 (B, 3, H, W).

    Args:
        numbers_BA: what is chosen from each of `data.captions.pair_grammar.CHOICES`.
        draws_B11: in [0, 1): for each object its place along and across the relation and its shade in three channels;
            then the shade of the background.
    """
    chosen_BA = torch.from_numpy(numbers_BA)
    shade_B = _DARK[0] + (_DARK[1] - _DARK[0]) * draws_B11[:, 10]
    image_BCHW = shade_B[:, None, None, None].expand(-1, 3, resolution, resolution)
    radii, colours = torch.tensor(list(SIZES.values())), torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    for first, draws_B5 in ((True, draws_B11[:, :5]), (False, draws_B11[:, 5:10])):
        size_B, colour_B, shape_B = chosen_BA[:, :3].T if first else chosen_BA[:, 4:].T
        centre_B2 = _centres(chosen_BA[:, 3], draws_B5[:, :2], first)
        coverage_BHW = shape_coverage(SHAPES, shape_B, centre_B2, radii[size_B], resolution)
        front_B3 = colours[colour_B] + (2 * draws_B5[:, 2:] - 1) * _JITTER
        image_BCHW = torch.lerp(image_BCHW, front_B3[:, :, None, None], coverage_BHW[:, None])
    return image_BCHW.round_().clamp_(0, 255).to(torch.uint8)


def _centres(relation_B: Tensor, place_B2: Tensor, first: bool) -> Tensor:
    """Centres (x, y) of the first or the second object; y points down."""
    names = [RELATIONS[number] for number in relation_B.tolist()]
    leads_B = torch.tensor([name in ("above", "left of") for name in names])
    side_B = torch.where(leads_B == first, -_APART, _APART)  # up or left is negative
    along_B = side_B + (2 * place_B2[:, 0] - 1) * _ALONG
    across_B = (2 * place_B2[:, 1] - 1) * _ACROSS
    vertical_B = torch.tensor([name in ("above", "below") for name in names])
    return torch.stack([torch.where(vertical_B, across_B, along_B), torch.where(vertical_B, along_B, across_B)], dim=1)


def _scenes(numbers_BA: np.ndarray) -> list[Scene]:
    return [Scene(*(choices[i] for choices, i in zip(CHOICES, numbers_A))) for numbers_A in numbers_BA.tolist()]
