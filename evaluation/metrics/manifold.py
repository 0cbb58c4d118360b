"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) and density and coverage (Naeem et al.
2020, arXiv 2002.09797): how two sets of features overlap, each set seen as balls that reach to the k-th neighbour.

Distances are squared, in float64, about the reference's mean, and computed tile by tile: memory grows with N + M, never
with N x M. Axes: N reals, M samples, F features, K neighbours; R C rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.metrics.kid import check_reference_features
from evaluation.metrics.metric import Metric, MetricResult, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name

_TILE = 2048


@dataclass(frozen=True)
class ManifoldSettings:
    """Neighbours that decide a ball: `pr_k` for precision and recall, `dc_k` for density and coverage.

    The defaults are the papers' (3 and 5).
    """

    pr_k: int = 3
    dc_k: int = 5


class Overlap(NamedTuple):
    """How two feature sets overlap.

    Attributes:
        precision: share of samples inside the ball of some real.
        recall: share of reals inside the ball of some sample.
        density: reals' balls that hold a sample, on average, over k; may exceed 1.
        coverage: share of reals whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(features_NF: Tensor, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Squared distances of every row to its 1st, ..., k-th nearest other row, (N, K) float64, ascending.

    Raises:
        ValueError: k below 1, or fewer than k + 1 rows.
    """
    if not 1 <= k < len(features_NF):
        raise ValueError(f"k = {k} neighbours need k at least 1 and more than k images, got {len(features_NF)}")
    centre_F = features_NF.double().mean(0)
    radii = []
    for start in range(0, len(features_NF), _TILE):
        rows_RF = _centred(features_NF[start : start + _TILE], centre_F, device)
        nearest_RK = rows_RF.new_full((len(rows_RF), k), torch.inf)
        for column in range(0, len(features_NF), _TILE):
            tile_RC = _squared_distances(rows_RF, _centred(features_NF[column : column + _TILE], centre_F, device))
            if column == start:
                tile_RC.fill_diagonal_(torch.inf)  # a row is not its own neighbour
            nearest_RK = torch.cat([nearest_RK, tile_RC], 1).topk(k, largest=False).values
        radii.append(nearest_RK.cpu())
    return torch.cat(radii)


def overlap(
    features_MF: Tensor,
    reference_NF: Tensor,
    settings: ManifoldSettings = ManifoldSettings(),
    device: torch.device | str = "cpu",
) -> Overlap:
    """Precision, recall, density and coverage of samples against reals.

    A point on the edge of a ball is inside for precision and recall (their Eq. 1), outside for density and coverage,
    as each is published.

    Args:
        features_MF: features of the samples.
        reference_NF: features of the reals.
        device: where tiles of distances are computed.

    Raises:
        ValueError: different numbers of features, or too few images for the neighbours asked for.
    """
    if features_MF.shape[1] != reference_NF.shape[1]:
        raise ValueError(f"cannot compare {features_MF.shape[1]} features with {reference_NF.shape[1]}")
    pr, dc = settings.pr_k - 1, settings.dc_k - 1
    real_radii_NK = neighbour_radii(reference_NF, max(settings.pr_k, settings.dc_k), device)
    sample_radius_M = neighbour_radii(features_MF, settings.pr_k, device)[:, pr].to(device)
    centre_F = reference_NF.double().mean(0)
    num_reals, num_samples = len(reference_NF), len(features_MF)
    inside_M = torch.zeros(num_samples, dtype=torch.bool, device=device)
    balls, recalled, covered = 0, 0, 0
    for start in range(0, num_reals, _TILE):
        rows_RF = _centred(reference_NF[start : start + _TILE], centre_F, device)
        radii_RK = real_radii_NK[start : start + _TILE].to(device)
        recalled_R = torch.zeros(len(rows_RF), dtype=torch.bool, device=device)
        nearest_R = rows_RF.new_full((len(rows_RF),), torch.inf)
        for column in range(0, num_samples, _TILE):
            ends = slice(column, column + _TILE)
            tile_RC = _squared_distances(rows_RF, _centred(features_MF[ends], centre_F, device))
            inside_M[ends] |= (tile_RC <= radii_RK[:, pr, None]).any(0)
            recalled_R |= (tile_RC <= sample_radius_M[ends]).any(1)
            balls += int((tile_RC < radii_RK[:, dc, None]).sum())
            nearest_R = torch.minimum(nearest_R, tile_RC.amin(1))
        recalled += int(recalled_R.sum())
        covered += int((nearest_R < radii_RK[:, dc]).sum())
    return Overlap(
        precision=inside_M.sum().item() / num_samples,
        recall=recalled / num_reals,
        density=balls / (settings.dc_k * num_samples),
        coverage=covered / num_reals,
    )


def _centred(rows_RF: Tensor, centre_F: Tensor, device: torch.device | str) -> Tensor:
    """Rows about a common point: distances stay, and the expanded square below loses fewer digits."""
    return rows_RF.to(device, torch.float64) - centre_F.to(device)


def _squared_distances(rows_RF: Tensor, columns_CF: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x . y of every row and column, not below 0."""
    squares_R, squares_C = rows_RF.square().sum(1), columns_CF.square().sum(1)
    return (squares_R[:, None] + squares_C).addmm_(rows_RF, columns_CF.T, alpha=-2).clamp_(min=0)


class ManifoldOverlap(Metric):
    """Precision, recall, density and coverage against named reference features (N, F).

    Raises:
        ValueError: reference features of another network.
    """

    needs_whole_set = True

    def __init__(
        self,
        extractor: FeatureExtractor,
        references: Mapping[str, Tensor],
        settings: ManifoldSettings = ManifoldSettings(),
    ) -> None:
        self.extractor, self.references, self.settings = extractor, references, settings
        check_reference_features(extractor, references)

    def reference_sizes(self) -> dict[str, int]:
        return {name: len(features_NF) for name, features_NF in self.references.items()}

    def result(self, whole: WholeSet) -> MetricResult:
        neighbours = {
            "precision": self.settings.pr_k,
            "recall": self.settings.pr_k,
            "density": self.settings.dc_k,
            "coverage": self.settings.dc_k,
        }
        values = {
            metric_name(
                kind, self.extractor.label, self.extractor.resize, reference, detail=f"k{neighbours[kind]}"
            ): value
            for reference, reference_NF in self.references.items()
            for kind, value in overlap(whole.features_NF, reference_NF, self.settings, self.extractor.device)
            ._asdict()
            .items()
        }
        return MetricResult(values)
