"""Scores in the making: each takes in batches after the feature network, sums over ranks, gives named values.

Axes: B batch, F features, Y classes, N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import frechet_between, frechet_warnings
from evaluation.metrics.inception_score import StreamingInceptionScore
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Gaussian, Reduce, StreamingStatistics


class ScoredBatch(NamedTuple):
    """One batch after the feature network."""

    features_BF: Tensor
    logits_BY: Tensor
    index_B: Tensor
    label_B: Tensor | None
    spatial_BF: Tensor | None = None


class Accumulator(Protocol):
    """A score in the making."""

    def update(self, batch: ScoredBatch) -> None:
        """Takes in a batch of this rank."""

    def all_reduce(self, reduce: Reduce) -> None:
        """Sums over ranks; called once, on every rank, after the last update."""

    def metrics(self) -> dict[str, float]:
        """Full metric names and values."""


class FrechetScores:
    """FID (or rFID) against any number of named references.

    Raises:
        ValueError: the moments of a reference are of another number of features.
    """

    def __init__(self, extractor: FeatureExtractor, references: Mapping[str, Gaussian], kind: str = "fid"):
        self._start(extractor, references, kind, extractor.label, extractor.dim)

    def _start(
        self, extractor: FeatureExtractor, references: Mapping[str, Gaussian], kind: str, label: str, dim: int
    ) -> None:
        for name, reference in references.items():
            if len(reference.mean_F) != dim:
                raise ValueError(f"reference {name!r} has {len(reference.mean_F)} features, {label} has {dim}")
        self.statistics, self.label = StreamingStatistics(dim, extractor.device), label
        self.references = {metric_name(kind, label, extractor.resize, r): g for r, g in references.items()}

    def update(self, batch: ScoredBatch) -> None:
        self.statistics.update(batch.features_BF)

    def all_reduce(self, reduce: Reduce) -> None:
        self.statistics = self.statistics.all_reduce(reduce)

    def metrics(self) -> dict[str, float]:
        gaussian = self.statistics.gaussian()
        return {name: frechet_between(gaussian, reference) for name, reference in self.references.items()}

    def warnings(self) -> list[str]:
        """What makes these distances less than they seem."""
        own = [f"{self.label}: {text}" for text in frechet_warnings(self.statistics.gaussian(), "the samples")]
        return own + [
            f"{name}: {text}"
            for name, reference in self.references.items()
            for text in frechet_warnings(reference, "the reference")
        ]


class SpatialFrechetScores(FrechetScores):
    """sFID: the Frechet distance of spatial features, which see where things are.

    Raises:
        ValueError: the feature network has no spatial features, or a reference is of other features.
    """

    def __init__(self, extractor: FeatureExtractor, references: Mapping[str, Gaussian], kind: str = "sfid"):
        if not hasattr(extractor, "with_spatial"):
            raise ValueError(f"{extractor.name} has no spatial features: sFID needs the inception features")
        self._start(extractor, references, kind, extractor.spatial_label, extractor.spatial_dim)

    def update(self, batch: ScoredBatch) -> None:
        assert batch.spatial_BF is not None
        self.statistics.update(batch.spatial_BF)


class BankFeeder:
    """Stores features and classes in a `FeatureBank`, for the scores that are taken on whole sets."""

    def __init__(self, bank: FeatureBank):
        self.bank = bank

    def update(self, batch: ScoredBatch) -> None:
        self.bank.update(batch.features_BF, batch.index_B, batch.label_B)

    def all_reduce(self, reduce: Reduce) -> None:
        self.bank.all_reduce(reduce)

    def metrics(self) -> dict[str, float]:
        return {}


class InceptionScores:
    """Inception score and its deviation over splits."""

    def __init__(self, extractor: FeatureExtractor, num_images: int, splits: int):
        self.names = [metric_name(k, extractor.label, extractor.resize, splits=splits) for k in ("is", "is-std")]
        self.score = StreamingInceptionScore(num_images, extractor.num_classes, splits, extractor.device)

    def update(self, batch: ScoredBatch) -> None:
        self.score.update(batch.logits_BY, batch.index_B)

    def all_reduce(self, reduce: Reduce) -> None:
        self.score.all_reduce(reduce)

    def metrics(self) -> dict[str, float]:
        return dict(zip(self.names, self.score.result()))


class RecognitionAccuracy:
    """Share of images in which the classifier recognises the class each was asked for.

    Raises:
        ValueError: the feature network does not know the data set's classes, or a batch has no labels.
    """

    def __init__(self, extractor: FeatureExtractor):
        if not extractor.recognises_labels:
            raise ValueError(f"{extractor.name} does not know the data set's classes: accuracy needs the classifier")
        self.name = metric_name("accuracy", extractor.label, extractor.resize)
        self.correct_and_total = torch.zeros(2, dtype=torch.int64, device=extractor.device)

    def update(self, batch: ScoredBatch) -> None:
        if batch.label_B is None:
            raise ValueError("recognition accuracy needs the class that each image was asked for (`label`)")
        correct = (batch.logits_BY.argmax(1) == batch.label_B.to(batch.logits_BY.device)).sum()
        self.correct_and_total += torch.stack([correct, correct.new_tensor(len(batch.logits_BY))])

    def all_reduce(self, reduce: Reduce) -> None:
        reduce(self.correct_and_total)

    def metrics(self) -> dict[str, float]:
        correct, total = self.correct_and_total.tolist()
        return {self.name: correct / total}


class SampleLedger:
    """Counts how often each global index 0..N-1 was seen; every one must be seen exactly once."""

    def __init__(self, num_images: int, device: torch.device | str = "cpu"):
        self.seen_N = torch.zeros(num_images, dtype=torch.int32, device=device)

    def update(self, index_B: Tensor) -> None:
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < len(self.seen_N):
            raise ValueError(f"got more images than the {len(self.seen_N)} announced (index {index_B.max().item()})")
        index_B = index_B.to(self.seen_N.device)
        self.seen_N.index_add_(0, index_B, torch.ones_like(index_B, dtype=torch.int32))

    def close(self, reduce: Reduce) -> None:
        """Sums over ranks and raises a ValueError unless every image came exactly once."""
        reduce(self.seen_N)
        missing, repeated = (self.seen_N == 0).sum().item(), (self.seen_N > 1).sum().item()
        if missing or repeated:
            raise ValueError(f"{len(self.seen_N)} images announced: {missing} missing, {repeated} more than once")
