"""The offline classifier's network and its training. Axes: B batch, C channels, H W image, N images, F features."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.protocol import from_uint8

# Part of the cache key: to be raised with any change of the network or its training.
RECIPE = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything besides the data that decides the weights.

    Attributes:
        resolution: images are resized (antialiased bilinear) to this square when they are not this size already.
        dim: number of features F, the width of the last layer.
        epochs: training length, but at least `min_presentations` and at most `max_presentations` images.
        max_images: a larger training split is sampled down to so many images (uniformly, from the seed).
    """

    resolution: int = 32
    dim: int = 128
    epochs: int = 10
    min_presentations: int = 6_000
    max_presentations: int = 400_000
    max_images: int = 60_000
    batch_size: int = 48
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    max_shift: int = 2
    seed: int = 0


class ClassifierNetwork(nn.Module):
    """Three strided convolutions, one plain one, mean over positions -> features, linear -> logits."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        widths = [3, dim // 4, dim // 2, dim]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:]):
            layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width_out), nn.ReLU()]
        layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] -> features (B, F) and logits (B, Y)."""
        features_BF = self.body(image_BCHW).mean((2, 3))
        return features_BF, self.classify(features_BF)


def new_network(num_classes: int, config: ClassifierConfig) -> ClassifierNetwork:
    """Weights from the seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ClassifierNetwork(num_classes, config.dim)


def fit_network(network: ClassifierNetwork, image_NCHW: Tensor, label_N: Tensor, config: ClassifierConfig) -> None:
    """AdamW with warm-up and cosine; small random shifts; the batches of an epoch partition a seeded permutation.

    Runs where network, images and labels are. Every random number is drawn on the CPU, and on a GPU the kernels are
    those that give the same numbers again.
    """
    with torch.autocast(image_NCHW.device.type, enabled=False), _repeatable_kernels():
        _fit(network, image_NCHW, label_N, config)


@contextlib.contextmanager
def _repeatable_kernels() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _fit(network: ClassifierNetwork, image_NCHW: Tensor, label_N: Tensor, config: ClassifierConfig) -> None:
    batch_size = min(config.batch_size, len(image_NCHW))
    steps_per_epoch = len(image_NCHW) // batch_size
    presentations = max(config.epochs * steps_per_epoch * batch_size, config.min_presentations)
    num_steps = max(1, min(presentations, config.max_presentations) // batch_size)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    network.train()
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order_N = torch.randperm(len(image_NCHW), generator=generator).to(image_NCHW.device)
        start = step % steps_per_epoch * batch_size
        index_B = order_N[start : start + batch_size]
        image_BCHW = _shifted(from_uint8(image_NCHW[index_B]), config.max_shift, generator)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, num_steps)
        loss = F.cross_entropy(network(image_BCHW)[1], label_N[index_B], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def _schedule(step: int, num_steps: int) -> float:
    """Linear warm-up over the first tenth, cosine to 0."""
    return min(1.0, (step + 1) / (0.1 * num_steps)) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _shifted(image_BCHW: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """The whole batch moved by one random offset, edges repeated."""
    height, width = image_BCHW.shape[2:]
    top, left = torch.randint(0, 2 * max_shift + 1, (2,), generator=generator).tolist()
    padded_BCHW = F.pad(image_BCHW, [max_shift] * 4, mode="replicate")
    return padded_BCHW[:, :, top : top + height, left : left + width]
