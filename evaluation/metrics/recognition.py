"""Recognition accuracy: the share of images that show the class they were asked for."""

from __future__ import annotations

import torch

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Reduce


class RecognitionAccuracy(Metric):
    """Share of images in which the classifier recognises the class each was asked for, and beside it `judge-accuracy`,
    the share of the data set's own validation images in which it does: what the first can be at best.

    Raises:
        ValueError: the feature network does not know the data set's classes, or a batch has no labels.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        if not extractor.recognises_labels:
            raise ValueError(f"{extractor.name} does not know the data set's classes: accuracy needs the classifier")
        self.name = metric_name("accuracy", extractor.label, extractor.resize)
        self.judge_name = metric_name("judge-accuracy", extractor.label, extractor.resize, reference="val")
        self.judge_accuracy: float | None = getattr(extractor, "accuracy", None)
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
        values = {self.name: correct / total}
        if self.judge_accuracy is None:
            return MetricResult(
                values, ["how well the classifier knows real images was not measured: no validation split"]
            )
        return MetricResult(values | {self.judge_name: self.judge_accuracy})
