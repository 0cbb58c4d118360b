"""CLIP score: how well images fit their captions, as the cosine of CLIP's features (Hessel et al. 2021, 2104.08718).

Given raw and times 100; neither is cut off at 0 nor scaled by 2.5, so that values of different papers can be told
apart. Axes: B batch, C channels, H W image, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, Network, ScoredBatch, WholeSet
from evaluation.protocol import metric_name
from evaluation.statistics import Reduce


class TextImageNetwork(Network, Protocol):
    """What the score needs of a network; `evaluation.networks.clip_features.ClipFeatures` is one."""

    label: str
    device: torch.device

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> features (B, F) and anything."""

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Captions -> features (B, F)."""

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than it reads."""


def caption_cosine(network: TextImageNetwork, image_BCHW: Tensor, captions: Sequence[str]) -> Tensor:
    """Cosine (B,), float64, of each uint8 image and its caption.

    Raises:
        ValueError: other numbers of images and captions, images that are not uint8.
    """
    if len(image_BCHW) != len(captions):
        raise ValueError(f"{len(image_BCHW)} images with {len(captions)} captions")
    return F.cosine_similarity(network(image_BCHW)[0].double(), network.text_features(captions).double())


class ClipScore(Metric):
    """Mean cosine of images and captions: `clip-cosine_<network>_<resize>` in [-1, 1], and the same times 100.

    Args:
        captions: by number; the `caption` of a batch says which, without it the images' own numbers do.
    """

    needs_network = False

    def __init__(self, network: TextImageNetwork, captions: Sequence[str]) -> None:
        self.network, self.captions = network, captions
        self.total_and_count = torch.zeros(2, dtype=torch.float64, device=network.device)

    def update(self, batch: ScoredBatch) -> None:
        number_B = batch.index_B if batch.caption_B is None else batch.caption_B
        if len(number_B):
            captions = [self.captions[number] for number in number_B.tolist()]
            cosine_B = caption_cosine(self.network, batch.image_BCHW, captions)
            self.total_and_count += torch.stack([cosine_B.sum(), cosine_B.new_tensor(len(captions))])

    def all_reduce(self, reduce: Reduce) -> None:
        reduce(self.total_and_count)

    def result(self, whole: WholeSet) -> MetricResult:
        total, count = self.total_and_count.tolist()
        names = [
            metric_name(kind, self.network.label, self.network.resize) for kind in ("clip-cosine", "clip-score100")
        ]
        values = dict(zip(names, (total / count, 100 * total / count)))
        used = self.captions[: int(count)]
        cut = self.network.count_cut(used)
        warnings = (
            [f"{cut} of {len(used)} captions are longer than CLIP reads and were cut for the score"] if cut else []
        )
        return MetricResult(values, warnings, networks={"clip": self.network})


class CaptionJudge:
    """Scores images by how well they fit their captions: what rejection sampling of texts keeps."""

    def __init__(self, network: TextImageNetwork, captions: Sequence[str]) -> None:
        self.network, self.captions, self.label = network, captions, network.label

    def __call__(self, image_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """uint8 images and the numbers of their captions -> cosines (B,), float32."""
        captions = [self.captions[number] for number in label_B.tolist()]
        return caption_cosine(self.network, image_BCHW, captions).float()
