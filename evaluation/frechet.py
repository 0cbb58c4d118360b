"""Frechet distance between two Gaussians, the FID of Heusel et al. 2017 (arXiv 1706.08500).

Axes: F features, R rank of a covariance.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from evaluation.statistics import Gaussian

Array: TypeAlias = "Tensor | np.ndarray"


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


def _moments(mu: Array, sigma: Array) -> tuple[Tensor, Tensor]:
    mean_F = torch.as_tensor(mu).detach().to("cpu", torch.float64).reshape(-1)
    covariance_FF = torch.as_tensor(sigma).detach().to("cpu", torch.float64)
    if covariance_FF.shape != (len(mean_F), len(mean_F)):
        raise ValueError(f"mean of {len(mean_F)} features with a covariance of shape {tuple(covariance_FF.shape)}")
    if not (mean_F.isfinite().all() and covariance_FF.isfinite().all()):
        raise ValueError("the statistics hold values that are not finite")
    return mean_F, (covariance_FF + covariance_FF.T) / 2


def _trace_of_root(covariance1_FF: Tensor, covariance2_FF: Tensor) -> Tensor:
    """tr((sigma1 sigma2)^(1/2)): Cholesky and eigenvalues when both have full rank, else on the two ranges."""
    factor_FF, singular1 = torch.linalg.cholesky_ex(covariance1_FF)
    _, singular2 = torch.linalg.cholesky_ex(covariance2_FF)
    if not (singular1 or singular2):
        eigenvalues_F = torch.linalg.eigvalsh(factor_FF.T @ covariance2_FF @ factor_FF)
        return eigenvalues_F.clamp(min=0).sqrt().sum()
    # Singular: rounding noise of relative size eps would enter as its square root. The nuclear norm of the product of
    # the two roots, each cut to its range, has no such noise.
    return torch.linalg.svdvals(_root_on_range(covariance1_FF).T @ _root_on_range(covariance2_FF)).sum()


def _root_on_range(covariance_FF: Tensor) -> Tensor:
    """(F, R) matrix A with A A^T = covariance, R its numerical rank."""
    eigenvalues_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    tolerance = eigenvalues_F.max().clamp(min=0) * len(eigenvalues_F) * torch.finfo(torch.float64).eps
    kept_F = eigenvalues_F > tolerance
    return vectors_FF[:, kept_F] * eigenvalues_F[kept_F].sqrt()
