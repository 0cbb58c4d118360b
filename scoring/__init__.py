"""Data and evaluation together: sources of images, references as a command, the table of metrics, scores of images."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scoring.image_source import ImageSource, open_source
    from scoring.metric_set import METRICS, MetricInputs, MetricRow, MetricSet
    from scoring.scoring_data import ScoringData
    from scoring.settings import FeatureSettings
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "scoring.image_source": ("ImageSource", "open_source"),
            "scoring.metric_set": ("METRICS", "MetricInputs", "MetricRow", "MetricSet"),
            "scoring.scoring_data": ("ScoringData",),
            "scoring.settings": ("FeatureSettings",),
        },
    )

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
