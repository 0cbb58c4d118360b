"""Metrics that mean one thing: protocol, feature networks, streaming statistics, one result line for a list of metrics.

The package sees tensors and iterables of tensors, never a model of ours or a data set. `metrics` holds one metric a
file, `networks` what gives features, `references` what is compared with.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
    from evaluation.networks.feature_networks import FeatureExtractor, build_features
    from evaluation.protocol import metric_name, to_uint8
    from evaluation.scores import Origin, metric_value, reference_statistics, score_images
    from evaluation.statistics import Gaussian, Ranks
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "evaluation.metrics.metric": ("Metric", "MetricResult", "ScoredBatch", "WholeSet"),
            "evaluation.networks.feature_networks": ("FeatureExtractor", "build_features"),
            "evaluation.protocol": ("metric_name", "to_uint8"),
            "evaluation.scores": ("Origin", "metric_value", "reference_statistics", "score_images"),
            "evaluation.statistics": ("Gaussian", "Ranks"),
        },
    )

__all__ = [
    "FeatureExtractor",
    "Gaussian",
    "Metric",
    "MetricResult",
    "Origin",
    "Ranks",
    "ScoredBatch",
    "WholeSet",
    "build_features",
    "metric_name",
    "metric_value",
    "reference_statistics",
    "score_images",
    "to_uint8",
]
