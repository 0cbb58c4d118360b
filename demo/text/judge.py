"""The judge of samples: a small network, trained on real images, that says what stands where in a picture.

It never sees a caption. A caption fixes what must be seen: the relation's axis, and of the objects at the first place
(top or left) and the second (bottom or right) the size, the colour and the shape. "A above B" and "B below A" are the
same picture, so places are judged, not the order of words.

Legend: B batch, N images, C channels, H W image, A seven answers, V choices of one answer.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.captions.pair_grammar import COLOURS, RELATIONS, SHAPES, SIZES, Scene
from data.captions.synthetic_pairs import SyntheticPairs
from evaluation.protocol import from_uint8
from runtime.seeding import derive_seed, generator

AXES = ("vertical", "horizontal")
LEADING = ("above", "left of")  # relations whose first object is at the first place
_OBJECT = (tuple(SIZES), tuple(COLOURS), SHAPES)
ANSWERS = (AXES, *_OBJECT, *_OBJECT)
KINDS = {"axis": (0,), "size": (1, 4), "colour": (2, 5), "shape": (3, 6)}  # positions among the answers

BATCH_SIZE, LEARNING_RATE = 64, 3e-3
NOISE = 0.1  # added to training images in [-1, 1], as samples are not as clean as real images
_WIDTHS = (3, 32, 64, 96)


def answers(scenes: Iterable[Scene]) -> Tensor:
    """What a picture of each scene must show: int64 (N, A), numbers of the choices in `ANSWERS`."""
    rows = []
    for scene in scenes:
        objects = [scene[:3], scene[4:]]
        if scene.relation not in LEADING:
            objects.reverse()
        words = (AXES[RELATIONS.index(scene.relation) // 2], *objects[0], *objects[1])
        rows.append([choices.index(word) for choices, word in zip(ANSWERS, words)])
    return torch.tensor(rows)


class Judge(nn.Module):
    """Three strided convolutions, then one linear layer over all places for each answer."""

    def __init__(self, resolution: tuple[int, int]):
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip(_WIDTHS, _WIDTHS[1:]):
            layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width_out), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        places = math.prod(-(-side // 2 ** (len(_WIDTHS) - 1)) for side in resolution)
        self.heads = nn.ModuleList(nn.Linear(_WIDTHS[-1] * places, len(choices)) for choices in ANSWERS)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Images in [-1, 1] -> logits (B, V) of every answer."""
        features_BF = self.body(image_BCHW)
        return [head(features_BF) for head in self.heads]

    @torch.no_grad()
    def answer(self, image_NCHW: Tensor) -> Tensor:
        """uint8 images -> most likely answers, int64 (N, A)."""
        parts = [
            torch.stack([logits_BV.argmax(1) for logits_BV in self(from_uint8(image_BCHW))], dim=1)
            for image_BCHW in image_NCHW.split(256)
        ]
        return torch.cat(parts)


def train_judge(dataset: SyntheticPairs, num_images: int, seed: int = 0) -> Judge:
    """Trains on images 0, 1, ... of a `synthetic-pairs` split, once each (starting over after the last)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("judge", seed))
        judge = Judge(dataset.resolution)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    num_steps = max(1, num_images // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps, pct_start=0.1)
    noise = generator("cpu", "judge noise", seed)
    for step in range(num_steps):
        index_B = np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE) % len(dataset)
        image_BCHW = from_uint8(dataset.fetch(index_B, None)["image"])
        image_BCHW = image_BCHW + NOISE * torch.randn(image_BCHW.shape, generator=noise)
        target_BA = answers(dataset.scenes(index_B))
        logits = judge(image_BCHW)
        losses = (F.cross_entropy(logits_BV, target_B) for logits_BV, target_B in zip(logits, target_BA.T))
        loss = functools.reduce(torch.add, losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def agreement(seen_NA: Tensor, asked_NA: Tensor) -> dict[str, float]:
    """Shares in [0, 1] of what was asked that is seen: of each kind over both objects, and of whole scenes."""
    right_NA = seen_NA == asked_NA
    shares = {kind: right_NA[:, list(columns)].double().mean().item() for kind, columns in KINDS.items()}
    return {**shares, "everything": right_NA.all(1).double().mean().item()}


def judge_images(judge: Judge, image_NCHW: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """`agreement` of uint8 images with the scenes they should show."""
    return agreement(judge.answer(image_NCHW), answers(scenes))
