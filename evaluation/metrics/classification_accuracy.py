"""The classification accuracy score of Ravuri and Vinyals 2019 (arXiv 1905.10887): train on samples, test on reals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evaluation.metrics.metric import Metric, MetricResult, WholeSet
from evaluation.networks.classifier import train_classifier
from evaluation.networks.classifier_training import RECIPE, ClassifierConfig
from evaluation.protocol import metric_name

if TYPE_CHECKING:
    from evaluation.networks.feature_networks import LabelledBatches


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


class ClassificationAccuracy(Metric):
    """`classification_accuracy_score` of a set that can be read again once it is whole.

    Args:
        measure: gives its values; the same on every rank.
    """

    needs_network = False

    def __init__(self, measure: Callable[[], dict[str, float]]) -> None:
        self.measure = measure

    def result(self, whole: WholeSet) -> MetricResult:
        return MetricResult(self.measure())
