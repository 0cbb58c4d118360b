"""Recognition accuracy: the share of images that show the class they were asked for."""

from __future__ import annotations

import torch

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Reduce


class RecognitionAccuracy(Metric):
    """Share of images in which the classifier recognises the class each was asked for.

    Raises:
        ValueError: the feature network does not know the data set's classes, or a batch has no labels.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
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

    def result(self, whole: WholeSet) -> MetricResult:
        correct, total = self.correct_and_total.tolist()
        return MetricResult({self.name: correct / total})
