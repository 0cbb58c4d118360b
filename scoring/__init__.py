"""Data and evaluation together: sources of images, references as a command, the table of metrics, scores of images."""

from scoring.image_source import ImageSource, open_source
from scoring.metric_set import METRICS, MetricInputs, MetricRow, MetricSet
from scoring.scoring_data import FeatureSettings, ScoringData

__all__ = [
    "METRICS",
    "FeatureSettings",
    "ImageSource",
    "MetricInputs",
    "MetricRow",
    "MetricSet",
    "ScoringData",
    "open_source",
]
