"""Frechet distance between two Gaussians, the FID of Heusel et al. 2017 (arXiv 1706.08500).

Axes: F features, R rank of a covariance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name
from evaluation.statistics import Gaussian, Reduce, StreamingStatistics

Array: TypeAlias = "Tensor | np.ndarray"

FEW_IMAGES = 2048


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)) in float64, never below 0.

    The general matrix square root is not needed: with sigma1 = A A^T the trace is the sum of the square roots of the
    eigenvalues of the symmetric A^T sigma2 A. Singular covariances (fewer images than features, dead features) are
    taken on their own range and give the right, finite number.

    Args:
        mu1, mu2: means (F,), or (1, F); numpy or torch, any float type.
        sigma1, sigma2: covariances (F, F), symmetric positive semi-definite up to rounding.

    Raises:
        ValueError: shapes that do not agree, or values that are not finite.
    """
    mean1_F, covariance1_FF = _moments(mu1, sigma1)
    mean2_F, covariance2_FF = _moments(mu2, sigma2)
    if mean1_F.shape != mean2_F.shape:
        raise ValueError(f"cannot compare statistics of {len(mean1_F)} features with statistics of {len(mean2_F)}")
    trace = covariance1_FF.trace() + covariance2_FF.trace() - 2 * _trace_of_root(covariance1_FF, covariance2_FF)
    return max(0.0, float((mean1_F - mean2_F).square().sum() + trace))


def frechet_between(first: Gaussian, second: Gaussian) -> float:
    """`frechet_distance` of two `Gaussian`s."""
    return frechet_distance(first.mean_F, first.covariance_FF, second.mean_F, second.covariance_FF)


def frechet_warnings(gaussian: Gaussian, name: str) -> list[str]:
    """What makes a distance to this Gaussian less reliable: few images, a singular covariance. One line each.

    The distance depends on the number of images (fewer images, larger distance); below 2,048 of them it says little,
    and with no more images than features the covariance has no inverse: the distance is still right for the moments,
    but they see only part of the space. A `num` of 0 (published moments do not say it) gives no warning about it.
    """
    found = []
    if 0 < gaussian.num < FEW_IMAGES:
        found.append(f"only {gaussian.num} images behind {name}, under {FEW_IMAGES}: compare with equally many only")
    if is_singular(gaussian):
        count = gaussian.num or "unknown number of"
        found.append(f"the covariance of {name} is singular ({count} images, {len(gaussian.mean_F)} features)")
    return found


def is_singular(gaussian: Gaussian) -> bool:
    """The covariance has no inverse in float64: too few images, or a Cholesky pivot at rounding level."""
    if 0 < gaussian.num <= len(gaussian.mean_F):
        return True
    covariance_FF = gaussian.covariance_FF
    factor_FF, failed = torch.linalg.cholesky_ex(covariance_FF)
    smallest, largest = factor_FF.diagonal().square().min(), covariance_FF.diagonal().max()
    tolerance = largest * len(gaussian.mean_F) * torch.finfo(torch.float64).eps
    return bool(failed) or bool(smallest <= tolerance)


def frechet_to_samples(features_NF: Tensor, reference: Gaussian) -> float:
    """Frechet distance of a few feature vectors to a Gaussian: N x N eigenvalues instead of F x F ones.

    With A the centred vectors over sqrt(N - 1), tr((sigma1 sigma2)^(1/2)) is the sum of the square roots of the
    eigenvalues of A sigma2 A^T. Cheaper than `frechet_distance` for N below F, and as exact up to 1e-7 relative.

    Raises:
        ValueError: fewer than 2 vectors, or another number of features.
    """
    if len(features_NF) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features_NF)}")
    if features_NF.shape[1] != len(reference.mean_F):
        raise ValueError(f"cannot compare {features_NF.shape[1]} features with {len(reference.mean_F)}")
    features_NF = features_NF.to(reference.mean_F)
    mean_F = features_NF.mean(0)
    root_NF = (features_NF - mean_F) / (len(features_NF) - 1) ** 0.5
    eigenvalues_N = torch.linalg.eigvalsh(root_NF @ reference.covariance_FF @ root_NF.T)
    noise = eigenvalues_N.max().clamp(min=0) * len(eigenvalues_N) * torch.finfo(torch.float64).eps
    trace_of_root = eigenvalues_N[eigenvalues_N > noise].sqrt().sum()
    trace = root_NF.square().sum() + reference.covariance_FF.trace() - 2 * trace_of_root
    return max(0.0, float((mean_F - reference.mean_F).square().sum() + trace))


def _moments(mu: Array, sigma: Array) -> tuple[Tensor, Tensor]:
    mean_F = torch.as_tensor(mu).detach().to("cpu", torch.float64).reshape(-1)
    covariance_FF = torch.as_tensor(sigma).detach().to("cpu", torch.float64)
    if covariance_FF.shape != (len(mean_F), len(mean_F)):
        raise ValueError(f"mean of {len(mean_F)} features with a covariance of shape {tuple(covariance_FF.shape)}")
    if not (mean_F.isfinite().all() and covariance_FF.isfinite().all()):
        raise ValueError("the statistics hold values that are not finite")
    return mean_F, (covariance_FF + covariance_FF.T) / 2


def _trace_of_root(covariance1_FF: Tensor, covariance2_FF: Tensor) -> Tensor:
    """tr((sigma1 sigma2)^(1/2)) from eigenvalues where a covariance has full rank, else on the two ranges."""
    factor_FF, singular1 = torch.linalg.cholesky_ex(covariance1_FF)
    _, singular2 = torch.linalg.cholesky_ex(covariance2_FF)
    if singular1 and singular2:
        # Rounding noise of relative size eps would enter as its square root. The nuclear norm of the product of the two
        # roots, each cut to its range, has no such noise.
        return torch.linalg.svdvals(_root_on_range(covariance1_FF).T @ _root_on_range(covariance2_FF)).sum()
    if singular1 or singular2:
        # On the range of the singular one the product has full rank: no eigenvalue is noise.
        pair = (covariance1_FF, covariance2_FF)
        singular_FF, regular_FF = pair if singular1 else pair[::-1]
        root_FR = _root_on_range(singular_FF)
        return _sum_of_roots(root_FR.T @ regular_FF @ root_FR)
    return _sum_of_roots(factor_FF.T @ covariance2_FF @ factor_FF)


def _sum_of_roots(product_RR: Tensor) -> Tensor:
    if len(product_RR) < 2:  # a single number is its own eigenvalue, which some releases of SciPy refuse
        return product_RR.clamp(min=0).sqrt().sum()
    # SciPy's LAPACK takes half of the time that torch's takes on a CPU.
    eigenvalues_R = scipy.linalg.eigvalsh(product_RR.numpy(), driver="evd", check_finite=False)
    return torch.from_numpy(eigenvalues_R).clamp(min=0).sqrt().sum()


def _root_on_range(covariance_FF: Tensor) -> Tensor:
    """(F, R) matrix A with A A^T = covariance, R its numerical rank."""
    eigenvalues_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    tolerance = eigenvalues_F.max().clamp(min=0) * len(eigenvalues_F) * torch.finfo(torch.float64).eps
    kept_F = eigenvalues_F > tolerance
    return vectors_FF[:, kept_F] * eigenvalues_F[kept_F].sqrt()


class FrechetDistance(Metric):
    """FID (or rFID) against any number of named references.

    Args:
        references: name (`train`, `val`, ...) -> moments.
        kind: `fid` or `rfid`, the first part of the metric's name.
        detail: settings that change the number, a part of its name.

    Raises:
        ValueError: the moments of a reference are of another number of features.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        references: Mapping[str, Gaussian],
        kind: str = "fid",
        detail: str | None = None,
    ) -> None:
        self._start(extractor, references, kind, detail, extractor.label, extractor.dim)

    def _start(
        self,
        extractor: FeatureExtractor,
        references: Mapping[str, Gaussian],
        kind: str,
        detail: str | None,
        label: str,
        dim: int,
    ) -> None:
        for name, reference in references.items():
            if len(reference.mean_F) != dim:
                raise ValueError(f"reference {name!r} has {len(reference.mean_F)} features, {label} has {dim}")
        self.statistics, self.label = StreamingStatistics(dim, extractor.device), label
        self.references = dict(references)
        self.names = {name: metric_name(kind, label, extractor.resize, name, detail=detail) for name in references}

    def reference_sizes(self) -> dict[str, int]:
        return {name: reference.num for name, reference in self.references.items()}

    def update(self, batch: ScoredBatch) -> None:
        self.statistics.update(batch.features_BF)

    def all_reduce(self, reduce: Reduce) -> None:
        self.statistics = self.statistics.all_reduce(reduce)

    def result(self, whole: WholeSet) -> MetricResult:
        gaussian = self.statistics.gaussian()
        values, warnings = {}, [f"{self.label}: {text}" for text in frechet_warnings(gaussian, "the samples")]
        for reference, name in self.names.items():
            values[name] = frechet_between(gaussian, self.references[reference])
            warnings += [f"{name}: {text}" for text in frechet_warnings(self.references[reference], "the reference")]
        return MetricResult(values, warnings)
