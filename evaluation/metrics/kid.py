"""Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD, cubic kernel, subsets.

Axes: N images, M rows of a subset, F features, S subsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name

_KERNEL_ROWS = 1024


@dataclass(frozen=True)
class KernelSettings:
    """What decides the estimate besides the features.

    Attributes:
        subsets: number of subsets S whose distances are averaged.
        subset_size: images of each set in a subset M; never more than either set has.
        seed: of the draws. They come from NumPy's legacy generator, whose stream is frozen, in the order of the
            torch-fidelity package: equal seeds give equal subsets there and here.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020


def polynomial_mmd(first_MF: Tensor, second_MF: Tensor) -> float:
    """Unbiased squared MMD of two feature sets under k(x, y) = (x . y / F + 1)^3, in float64; may fall below 0.

    Kernel values are summed in blocks of rows: memory does not grow with the product of the set sizes.

    Raises:
        ValueError: fewer than 2 rows in a set, or different numbers of features.
    """
    if min(len(first_MF), len(second_MF)) < 2:
        raise ValueError(f"KID needs at least 2 images per set, got {len(first_MF)} and {len(second_MF)}")
    if first_MF.shape[1] != second_MF.shape[1]:
        raise ValueError(f"cannot compare {first_MF.shape[1]} features with {second_MF.shape[1]}")
    first_MF, second_MF = first_MF.double(), second_MF.double()
    within = _mean_off_diagonal(first_MF) + _mean_off_diagonal(second_MF)
    across = _kernel_sum(first_MF, second_MF) / (len(first_MF) * len(second_MF))
    return (within - 2 * across).item()


def _mean_off_diagonal(x_MF: Tensor) -> Tensor:
    diagonal = (x_MF.square().sum(1) / x_MF.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(x_MF, x_MF) - diagonal) / (len(x_MF) * (len(x_MF) - 1))


def _kernel_sum(x_MF: Tensor, y_MF: Tensor) -> Tensor:
    total = x_MF.new_zeros(())
    for rows_MF in x_MF.split(_KERNEL_ROWS):
        for columns_MF in y_MF.split(_KERNEL_ROWS):
            total += (rows_MF @ columns_MF.T).div_(x_MF.shape[1]).add_(1).pow_(3).sum()
    return total


def kernel_distance(
    features_NF: Tensor,
    reference_NF: Tensor,
    settings: KernelSettings = KernelSettings(),
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Mean and unbiased standard deviation of the distance over random subsets (deviation 0 for a single one).

    Args:
        device: where the subsets are compared.

    Raises:
        ValueError: see `polynomial_mmd`; or fewer than 1 subset, or a subset larger than a set.
    """
    smaller = min(len(features_NF), len(reference_NF))
    if settings.subsets < 1:
        raise ValueError(f"KID needs at least 1 subset, got {settings.subsets}")
    if not 2 <= settings.subset_size <= smaller:
        raise ValueError(f"KID subsets of {settings.subset_size} images do not fit: choose 2..{smaller}")
    generator = np.random.RandomState(settings.seed)
    distances = []
    for _ in range(settings.subsets):
        subset_pair = [
            rows_NF[torch.from_numpy(generator.choice(len(rows_NF), settings.subset_size, replace=False))].to(device)
            for rows_NF in (features_NF, reference_NF)
        ]
        distances.append(polynomial_mmd(*subset_pair))
    distance_S = torch.tensor(distances, dtype=torch.float64)
    std = distance_S.std(unbiased=True).item() if settings.subsets > 1 else 0.0
    return distance_S.mean().item(), std


def in_their_own_order(features_NF: Tensor) -> Tensor:
    """The same rows, ascending by their weighted sum: an order that last digits hardly change."""
    weight_F = torch.linspace(1, 2, features_NF.shape[1], dtype=torch.float64)
    return features_NF[(features_NF.cpu().double() @ weight_F).argsort(stable=True)]


class KernelDistance(Metric):
    """KID against any number of named reference features (N, F).

    Which images stand together in a subset depends on their features, not on their order: the same images give the same
    number, whatever their names and places. A set smaller than `settings.subset_size` lowers the size of the subsets,
    and the metric's name says so.

    Raises:
        ValueError: reference features of another network.
    """

    needs_whole_set = True

    def __init__(
        self,
        extractor: FeatureExtractor,
        references: Mapping[str, Tensor],
        settings: KernelSettings = KernelSettings(),
    ) -> None:
        self.extractor, self.references, self.settings = extractor, references, settings
        check_reference_features(extractor, references)

    def reference_sizes(self) -> dict[str, int]:
        return {name: len(features_NF) for name, features_NF in self.references.items()}

    def result(self, whole: WholeSet) -> MetricResult:
        values: dict[str, float] = {}
        ordered_NF = in_their_own_order(whole.features_NF)
        for reference, reference_NF in self.references.items():
            size = min(self.settings.subset_size, len(whole.features_NF), len(reference_NF))
            settings = KernelSettings(self.settings.subsets, size, self.settings.seed)
            scores = kernel_distance(ordered_NF, in_their_own_order(reference_NF), settings, self.extractor.device)
            for kind, value in zip(("kid", "kid-std"), scores):
                detail = f"subsets{settings.subsets}x{size}"
                name = metric_name(kind, self.extractor.label, self.extractor.resize, reference, detail=detail)
                values[name] = value
        return MetricResult(values, facts={"kid_seed": self.settings.seed})


def check_reference_features(extractor: FeatureExtractor, references: Mapping[str, Tensor]) -> None:
    """Raises a ValueError unless all references are (N, F) with the extractor's F and at least 2 rows."""
    for name, features_NF in references.items():
        if features_NF.dim() != 2 or features_NF.shape[1] != extractor.dim or len(features_NF) < 2:
            raise ValueError(
                f"reference {name!r} must hold features (at least 2, {extractor.dim}) of "
                f"{extractor.name}, got {tuple(features_NF.shape)}"
            )
