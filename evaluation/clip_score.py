"""CLIP score: how well images fit their captions, as the cosine of CLIP's features (Hessel et al. 2021, 2104.08718).

Given raw and times 100; neither is cut off at 0 nor scaled by 2.5, so that values of different papers can be told
apart. Axes: B batch, C channels, H W image, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.protocol import metric_name
from evaluation.statistics import Reduce, no_reduce


class TextImageNetwork(Protocol):
    """What the score needs of a network; `evaluation.clip_features.ClipFeatures` is one."""

    label: str
    resize: str
    device: torch.device

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> features (B, F) and anything."""

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Captions -> features (B, F)."""


def clip_score(
    batches: Iterable[tuple[Tensor, Sequence[str]]],
    network: TextImageNetwork,
    *,
    num_images: int,
    reduce: Reduce = no_reduce,
) -> dict[str, float]:
    """Mean cosine of images and captions over exactly `num_images` pairs on all ranks: {metric name: value}.

    `clip-cosine_<network>_<resize>` in [-1, 1], and `clip-score100_...`, the same times 100.

    Args:
        batches: this rank's uint8 images with one caption each.

    Raises:
        ValueError: not exactly `num_images` pairs, a batch with other numbers of images and captions, images that are
            not uint8.
    """
    total_and_count = torch.zeros(2, dtype=torch.float64, device=network.device)
    for image_BCHW, captions in batches:
        if len(image_BCHW) != len(captions):
            raise ValueError(f"{len(image_BCHW)} images with {len(captions)} captions")
        if len(captions):
            cosine_B = F.cosine_similarity(network(image_BCHW)[0].double(), network.text_features(captions).double())
            total_and_count += torch.stack([cosine_B.sum(), cosine_B.new_tensor(len(captions))])
    reduce(total_and_count)
    total, count = total_and_count.tolist()
    if count != num_images or not count:
        raise ValueError(f"{num_images} images announced, got {int(count)}")
    names = [metric_name(kind, network.label, network.resize) for kind in ("clip-cosine", "clip-score100")]
    return dict(zip(names, (total / count, 100 * total / count)))
