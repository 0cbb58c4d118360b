"""Scores by class: one FID per class, and the classification accuracy score of Ravuri and Vinyals 2019 (1905.10887).

Axes: B batch, C channels, H W image, N images, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import frechet_between, frechet_to_samples
from evaluation.networks.classifier import train_classifier
from evaluation.networks.classifier_training import RECIPE, ClassifierConfig
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Gaussian, statistics_of

ClassMoments: TypeAlias = "Gaussian | Tensor"
"""The real images of one class: their moments, or their features (N, F)."""

LabelledBatches = Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]]


def count_images(moments: ClassMoments) -> int:
    """Images behind the moments or features of a class."""
    return moments.num if isinstance(moments, Gaussian) else len(moments)


class ClassFrechetScores:
    """FID of every class of a bank's images against named references; the metric is the mean over classes.

    Classes with fewer than 2 images, or absent from the reference, are left out of table and mean and listed in
    `warnings`.

    Args:
        references: name -> class -> moments or features of that class.

    Raises:
        ValueError: references of other features; later, images without a class, or no class to compare.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        bank: FeatureBank,
        references: Mapping[str, Mapping[int, ClassMoments]],
        kind: str = "class-fid",
    ):
        for name, classes in references.items():
            for label, moments in classes.items():
                dim = len(moments.mean_F) if isinstance(moments, Gaussian) else moments.shape[-1]
                if dim != extractor.dim:
                    raise ValueError(
                        f"reference {name!r} has {dim} features for class {label}, {extractor.name} has {extractor.dim}"
                    )
        self.bank, self.device = bank, extractor.device
        self.references = {
            metric_name(kind, extractor.label, extractor.resize, name): classes for name, classes in references.items()
        }
        self._tables: dict[str, dict[int, float]] | None = None

    def tables(self) -> dict[str, dict[int, float]]:
        """Metric name -> class -> FID, computed once."""
        if self._tables is None:
            label_N = self.bank.label_N
            if (label_N < 0).any():
                raise ValueError("per-class FID needs the class that each image was asked for (`label`)")
            self._tables = {name: self._table(label_N, classes) for name, classes in self.references.items()}
        return self._tables

    def _table(self, label_N: Tensor, classes: Mapping[int, ClassMoments]) -> dict[int, float]:
        table = {}
        for label in label_N.unique().tolist():
            rows_NF = self.bank.features_NF[label_N == label].to(self.device)
            if label in classes and len(rows_NF) >= 2 and count_images(classes[label]) != 1:
                table[label] = _distance(rows_NF, classes[label])
        if not table:
            raise ValueError("per-class FID: no class has 2 images here and in the reference")
        return table

    def metrics(self) -> dict[str, float]:
        return {name: sum(table.values()) / len(table) for name, table in self.tables().items()}

    def warnings(self) -> list[str]:
        """Which classes were left out."""
        found = []
        present = set(self.bank.label_N.tolist())
        for name, table in self.tables().items():
            left_out = sorted((present | set(self.references[name])) - set(table))
            if left_out:
                listed = ", ".join(map(str, left_out[:10])) + (", ..." if len(left_out) > 10 else "")
                found.append(f"{name}: {len(left_out)} classes left out, under 2 images here or there: {listed}")
        return found


def _distance(features_NF: Tensor, moments: ClassMoments) -> float:
    dim = features_NF.shape[1]
    if not isinstance(moments, Gaussian):
        moments = statistics_of([moments.to(features_NF.device)], dim, features_NF.device).gaussian()
    if len(features_NF) < dim:
        return frechet_to_samples(features_NF, moments)
    return frechet_between(statistics_of([features_NF], dim, features_NF.device).gaussian(), moments)


def classification_accuracy_score(
    samples: LabelledBatches,
    real: LabelledBatches,
    num_classes: int,
    *,
    reference: str,
    config: ClassifierConfig | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Trains the offline classifier on labelled samples and tests it on real images: {metric name: accuracy}.

    A generator that misses modes or ignores its class scores low. The name carries the classifier's settings, not its
    hash: the weights are what is measured. The score of the real training split itself is the ceiling.

    Args:
        samples: batches of (image, label) or mappings with these keys, uint8 or float in [-1, 1]; the class asked for.
        real: the same for the real test split.
        reference: name of that split, for the metric's name.
        config, cache_dir, device: see `train_classifier`.

    Raises:
        ValueError: see `train_classifier`; or no real images.
    """
    config = config or ClassifierConfig()
    classifier = train_classifier(
        samples, num_classes, validation=real, config=config, cache_dir=cache_dir, device=device
    )
    assert classifier.accuracy is not None
    features = f"classifier{config.dim}-recipe{RECIPE}-seed{config.seed}"
    return {metric_name("cas", features, classifier.resize, reference): classifier.accuracy}
