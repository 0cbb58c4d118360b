"""Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL of p(y|x) from p(y), over splits.

Axes: N images, Y classes, S splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Reduce


class StreamingInceptionScore:
    """Inception score of images that arrive in any order and batching, over any number of ranks.

    Split j is made of the global indices j*N//S .. (j+1)*N//S - 1, so the score does not depend on how the images were
    spread. Only the class sums and entropies of every split are kept.

    Args:
        num_samples: total number of images N over all ranks.
        num_classes: classes Y of the logits.
        splits: number of contiguous splits S.

    Raises:
        ValueError: `splits` below 1 or more splits than images.
    """

    def __init__(self, num_samples: int, num_classes: int, splits: int = 10, device: torch.device | str = "cpu"):
        if not 1 <= splits <= num_samples:
            raise ValueError(f"splits must be between 1 and the number of images {num_samples}, got {splits}")
        bounds = [j * num_samples // splits for j in range(splits + 1)]
        self.bounds_S = torch.tensor(bounds[1:], device=device)
        self.size_S = torch.tensor(bounds, device=device, dtype=torch.float64).diff()
        self.probability_sum_SY = torch.zeros(splits, num_classes, dtype=torch.float64, device=device)
        self.negative_entropy_S = torch.zeros(splits, dtype=torch.float64, device=device)

    def update(self, logits_NY: Tensor, index_N: Tensor) -> None:
        """Adds the logits of the images with these global indices."""
        # Probabilities in float32, as published evaluations take them from the network; all sums in float64.
        probability_NY = logits_NY.detach().float().softmax(1).to(self.probability_sum_SY)
        split_N = torch.bucketize(index_N.to(self.bounds_S.device).contiguous(), self.bounds_S, right=True)
        self.probability_sum_SY.index_add_(0, split_N, probability_NY)
        self.negative_entropy_S.index_add_(0, split_N, torch.xlogy(probability_NY, probability_NY).sum(1))

    def all_reduce(self, reduce: Reduce) -> None:
        """Sums over ranks, once, after the last update."""
        reduce(self.probability_sum_SY)
        reduce(self.negative_entropy_S)

    def result(self) -> tuple[float, float]:
        """Mean and unbiased standard deviation of the splits' scores (0 for a single split)."""
        marginal_SY = self.probability_sum_SY / self.size_S[:, None]
        # mean_x KL(p(y|x) || p(y)) = mean_x sum_y p log p - sum_y p(y) log p(y)
        divergence_S = self.negative_entropy_S / self.size_S - torch.xlogy(marginal_SY, marginal_SY).sum(1)
        score_S = divergence_S.exp()
        std = score_S.std(unbiased=True).item() if len(score_S) > 1 else 0.0
        return score_S.mean().item(), std


def inception_score(logits: Tensor | Iterable[Tensor], splits: int = 10) -> tuple[float, float]:
    """Mean and unbiased standard deviation of the inception score over contiguous splits; sums in float64.

    Args:
        logits: (N, Y) logits in sample order, or an iterable of such batches.
        splits: number of contiguous splits.

    Raises:
        ValueError: no logits, or fewer images than splits.
    """
    logits_NY = logits if isinstance(logits, Tensor) else torch.cat(list(logits))
    if logits_NY.dim() != 2:
        raise ValueError(f"logits must be (images, classes), got {tuple(logits_NY.shape)}")
    score = StreamingInceptionScore(len(logits_NY), logits_NY.shape[1], splits, logits_NY.device)
    score.update(logits_NY, torch.arange(len(logits_NY)))
    return score.result()


class InceptionScore(Metric):
    """Inception score and its deviation over splits, which the images are put into in the order of their numbers.

    The published order: images that a model drew, by their sample numbers.

    Args:
        num_images: over all ranks.
        splits: at most one per image.

    Raises:
        ValueError: the feature network has no classes.
    """

    detail: str | None = None

    def __init__(self, extractor: FeatureExtractor, num_images: int, splits: int = 10) -> None:
        if not extractor.num_classes:
            raise ValueError(f"{extractor.label} has no classes, which the inception score needs")
        splits = min(splits, num_images)
        self.names = [
            metric_name(k, extractor.label, extractor.resize, splits=splits, detail=self.detail)
            for k in ("is", "is-std")
        ]
        self.score = StreamingInceptionScore(num_images, extractor.num_classes, splits, extractor.device)

    def update(self, batch: ScoredBatch) -> None:
        self.score.update(batch.logits_BY, batch.index_B)

    def all_reduce(self, reduce: Reduce) -> None:
        self.score.all_reduce(reduce)

    def result(self, whole: WholeSet) -> MetricResult:
        return MetricResult(dict(zip(self.names, self.score.result())))


class MixedInceptionScore(InceptionScore):
    """Inception score of images whose order says nothing: that of a folder of another tool, which may be by class.

    The images are put in the order of the SHA-256 values of their pixels and dealt out to the splits in turn: the same
    images give the same number, however they are named or arranged, and equal images do not gather in one split. The
    logits (N, Y) wait in memory until all images are there.
    """

    detail = "mixed"

    def __init__(self, extractor: FeatureExtractor, num_images: int, splits: int = 10) -> None:
        super().__init__(extractor, num_images, splits)
        self.splits = min(splits, num_images)
        self.digest_N = torch.zeros(num_images, dtype=torch.int64, device=extractor.device)
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, batch: ScoredBatch) -> None:
        self.digest_N[batch.index_B.to(self.digest_N.device)] = image_digests(batch.image_BCHW).to(self.digest_N.device)
        self.waiting.append((batch.index_B.cpu(), batch.logits_BY.detach().float().cpu()))

    def all_reduce(self, reduce: Reduce) -> None:
        reduce(self.digest_N)  # of every image one rank has it, the others zero
        order_N = self.digest_N.cpu().argsort(stable=True)
        dealt_N = torch.cat([order_N[first :: self.splits] for first in range(self.splits)])
        place_N = torch.empty_like(dealt_N)
        place_N[dealt_N] = torch.arange(len(dealt_N))
        for index_B, logits_BY in self.waiting:
            self.score.update(logits_BY.to(self.digest_N.device), place_N[index_B])
        self.waiting.clear()
        super().all_reduce(reduce)


def image_digests(image_BCHW: Tensor) -> Tensor:
    """The first 8 bytes of the SHA-256 value of every uint8 image, as int64 (B,)."""
    pixels_BHWC = image_BCHW.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    digests = [hashlib.sha256(pixels_HWC).digest()[:8] for pixels_HWC in pixels_BHWC]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
