"""CLIP score: how well images fit their captions, as the cosine of CLIP's features (Hessel et al. 2021, 2104.08718).

Given raw and times 100; neither is cut off at 0 nor scaled by 2.5, so that values of different papers can be told
apart. Axes: B batch, C channels, H W image, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.protocol import metric_name
from evaluation.statistics import Reduce, no_reduce


class TextImageNetwork(Protocol):
    """What the score needs of a network; `evaluation.networks.clip_features.ClipFeatures` is one."""

    label: str
    resize: str
    device: torch.device

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> features (B, F) and anything."""

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Captions -> features (B, F)."""


def caption_cosine(network: TextImageNetwork, image_BCHW: Tensor, captions: Sequence[str]) -> Tensor:
    """Cosine (B,), float64, of each uint8 image and its caption.

    Raises:
        ValueError: other numbers of images and captions, images that are not uint8.
    """
    if len(image_BCHW) != len(captions):
        raise ValueError(f"{len(image_BCHW)} images with {len(captions)} captions")
    return F.cosine_similarity(network(image_BCHW)[0].double(), network.text_features(captions).double())


class ClipScore:
    """Mean cosine of images and captions, summed up batch by batch and over ranks."""

    def __init__(self, network: TextImageNetwork):
        self.network = network
        self.total_and_count = torch.zeros(2, dtype=torch.float64, device=network.device)

    def update(self, image_BCHW: Tensor, captions: Sequence[str]) -> None:
        """Adds pairs; errors as for `caption_cosine`."""
        if len(captions) or len(image_BCHW):
            cosine_B = caption_cosine(self.network, image_BCHW, captions)
            self.total_and_count += torch.stack([cosine_B.sum(), cosine_B.new_tensor(len(captions))])

    def watch(self, batches: Iterable[Mapping[str, Tensor]], captions: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        """Passes batches on and adds their images; `caption` holds the numbers of their captions."""
        for batch in batches:
            self.update(batch["image"], [captions[number] for number in batch["caption"].tolist()])
            yield batch

    def metrics(self, num_images: int, reduce: Reduce = no_reduce) -> dict[str, float]:
        """`clip-cosine_<network>_<resize>` in [-1, 1], and `clip-score100_...`, the same times 100.

        Raises:
            ValueError: not exactly `num_images` pairs on all ranks.
        """
        reduce(self.total_and_count)
        total, count = self.total_and_count.tolist()
        if count != num_images or not count:
            raise ValueError(f"{num_images} images announced, got {int(count)}")
        names = [
            metric_name(kind, self.network.label, self.network.resize) for kind in ("clip-cosine", "clip-score100")
        ]
        return dict(zip(names, (total / count, 100 * total / count)))


def clip_score(
    batches: Iterable[tuple[Tensor, Sequence[str]]],
    network: TextImageNetwork,
    *,
    num_images: int,
    reduce: Reduce = no_reduce,
) -> dict[str, float]:
    """Mean cosine over exactly `num_images` pairs on all ranks: {metric name: value}; see `ClipScore.metrics`.

    Args:
        batches: this rank's uint8 images with one caption each.

    Raises:
        ValueError: as for `ClipScore`.
    """
    score = ClipScore(network)
    for image_BCHW, captions in batches:
        score.update(image_BCHW, captions)
    return score.metrics(num_images, reduce)


class CaptionJudge:
    """Scores images by how well they fit their captions: what rejection sampling of texts keeps."""

    def __init__(self, network: TextImageNetwork, captions: Sequence[str]):
        self.network, self.captions, self.label = network, captions, network.label

    def __call__(self, image_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """uint8 images and the numbers of their captions -> cosines (B,), float32."""
        captions = [self.captions[number] for number in label_B.tolist()]
        return caption_cosine(self.network, image_BCHW, captions).float()
