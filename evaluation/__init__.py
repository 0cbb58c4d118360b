"""Metrics that mean one thing: protocol, feature networks, streaming statistics, one result line for a list of metrics.

The package sees tensors and iterables of tensors, never a model of ours or a data set. `metrics` holds one metric a
file, `networks` what gives features, `references` what is compared with.
"""

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor, build_features
from evaluation.protocol import metric_name, to_uint8
from evaluation.scores import Origin, metric_value, reference_statistics, score_images
from evaluation.statistics import Gaussian, Ranks

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
