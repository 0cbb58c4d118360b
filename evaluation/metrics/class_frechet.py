"""One FID per class.

Axes: B batch, C channels, H W image, N images, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from evaluation.metrics.frechet import frechet_between, frechet_to_samples
from evaluation.metrics.metric import Metric, MetricResult, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Gaussian, statistics_of
from runtime.errors import first_few

ClassMoments: TypeAlias = "Gaussian | Tensor"
"""The real images of one class: their moments, or their features (N, F)."""


def count_images(moments: ClassMoments) -> int:
    """Images behind the moments or features of a class."""
    return moments.num if isinstance(moments, Gaussian) else len(moments)


class ClassFrechetDistance(Metric):
    """FID of every class against named references; the metric is the mean over classes.

    Classes with fewer than 2 images, or absent from the reference, are left out of table and mean and listed in the
    warnings.

    Args:
        references: name -> class -> moments or features of that class.

    Raises:
        ValueError: references of other features; later, images without a class, or no class to compare.
    """

    needs_whole_set = True

    def __init__(
        self,
        extractor: FeatureExtractor,
        references: Mapping[str, Mapping[int, ClassMoments]],
        kind: str = "class-fid",
    ) -> None:
        for name, classes in references.items():
            for label, moments in classes.items():
                dim = len(moments.mean_F) if isinstance(moments, Gaussian) else moments.shape[-1]
                if dim != extractor.dim:
                    raise ValueError(
                        f"reference {name!r} has {dim} features for class {label}, {extractor.name} has {extractor.dim}"
                    )
        self.device, self.references = extractor.device, dict(references)
        self.names = {name: metric_name(kind, extractor.label, extractor.resize, name) for name in references}

    def reference_sizes(self) -> dict[str, int]:
        return {
            name: sum(count_images(moments) for moments in classes.values())
            for name, classes in self.references.items()
        }

    def result(self, whole: WholeSet) -> MetricResult:
        if (whole.label_N < 0).any():
            raise ValueError("per-class FID needs the class that each image was asked for (`label`)")
        tables = {name: self._table(whole, self.references[reference]) for reference, name in self.names.items()}
        values = {name: sum(table.values()) / len(table) for name, table in tables.items()}
        present = set(whole.label_N.tolist())
        warnings = []
        for reference, name in self.names.items():
            left_out = sorted((present | set(self.references[reference])) - set(tables[name]))
            if left_out:
                listed = first_few(left_out, 10)
                warnings.append(f"{name}: {len(left_out)} classes left out, under 2 images here or there: {listed}")
        return MetricResult(values, warnings, {"per_class": tables})

    def _table(self, whole: WholeSet, classes: Mapping[int, ClassMoments]) -> dict[int, float]:
        table = {}
        for label in whole.label_N.unique().tolist():
            rows_NF = whole.features_NF[whole.label_N == label].to(self.device)
            if label in classes and len(rows_NF) >= 2 and count_images(classes[label]) != 1:
                table[label] = _distance(rows_NF, classes[label])
        if not table:
            raise ValueError("per-class FID: no class has 2 images here and in the reference")
        return table


def _distance(features_NF: Tensor, moments: ClassMoments) -> float:
    dim = features_NF.shape[1]
    if not isinstance(moments, Gaussian):
        moments = statistics_of([moments.to(features_NF.device)], dim, features_NF.device).gaussian()
    if len(features_NF) < dim:
        return frechet_to_samples(features_NF, moments)
    return frechet_between(statistics_of([features_NF], dim, features_NF.device).gaussian(), moments)
