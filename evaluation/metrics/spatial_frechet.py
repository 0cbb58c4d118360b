"""sFID: the Frechet distance of spatial features, which see where things are (Nash et al. 2021, arXiv 2103.03841)."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.metric import ScoredBatch
from evaluation.networks.feature_networks import FeatureExtractor, spatial_extractor
from evaluation.statistics import Gaussian


class SpatialFrechetDistance(FrechetDistance):
    """sFID against any number of named references.

    Raises:
        ValueError: the feature network has no spatial features, or a reference is of other features.
    """

    needs_spatial = True

    def __init__(self, extractor: FeatureExtractor, references: Mapping[str, Gaussian], kind: str = "sfid") -> None:
        spatial = spatial_extractor(extractor)
        self._start(extractor, references, kind, None, spatial.spatial_label, spatial.spatial_dim)

    def update(self, batch: ScoredBatch) -> None:
        self.statistics.update(batch.spatial_BF)
