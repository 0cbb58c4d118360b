from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evaluation.metrics.frechet import frechet_distance


def rotation(dim, seed=0):
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


def spread(dim, low=0.1, high=4.0):
    return torch.linspace(low, high, dim, dtype=torch.float64)


def closed_form(variance1_F, variance2_F, shift_F):
    """Commuting covariances: the sum over axes of (difference of standard deviations)^2 and of shifts squared."""
    return ((variance1_F.sqrt() - variance2_F.sqrt()).square() + shift_F.square()).sum().item()


def rotated(basis_FF, variance_F):
    return basis_FF @ torch.diag(variance_F) @ basis_FF.T


def test_commuting_gaussians_in_64_dimensions():
    basis, shift = rotation(64), torch.randn(64, dtype=torch.float64)
    one, two = spread(64), spread(64, 3.0, 0.5)
    distance = frechet_distance(shift, rotated(basis, one), torch.zeros(64), rotated(basis, two))
    assert distance == pytest.approx(closed_form(one, two, shift), rel=1e-9)


def test_scaled_covariance():
    basis = rotation(64)
    sigma = rotated(basis, spread(64))
    distance = frechet_distance(np.zeros(64), sigma.numpy(), np.zeros(64), 9 * sigma.numpy())
    assert distance == pytest.approx(4 * sigma.trace().item(), rel=1e-9)


def test_gaussians_that_do_not_commute_against_the_matrix_root():
    one, two = rotated(rotation(24, 1), spread(24)), rotated(rotation(24, 2), spread(24, 1.0, 7.0))
    root = np.trace(sqrtm((one @ two).numpy())).real
    expected = one.trace().item() + two.trace().item() - 2 * root
    zero = torch.zeros(24)
    assert frechet_distance(zero, one, zero, two) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(zero, two, zero, one) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ranks", [(0, 0), (0, 64), (5, 64), (64, 5), (5, 9), (63, 64)])
def test_singular_covariances(ranks):
    basis, shift = rotation(64), torch.ones(64, dtype=torch.float64)
    variances = [torch.where(torch.arange(64) < rank, spread(64), 0.0) for rank in ranks]
    one, two = (rotated(basis, variance_F) for variance_F in variances)
    expected = closed_form(*variances, shift)
    assert frechet_distance(shift, one, 0 * shift, two) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(shift, two, 0 * shift, one) == pytest.approx(expected, rel=1e-9)


def test_singular_in_different_directions():
    # Ranges that are orthogonal: the root of the product vanishes.
    basis = rotation(64)
    one = rotated(basis, torch.where(torch.arange(64) < 20, 2.0, 0.0).double())
    two = rotated(basis, torch.where(torch.arange(64) >= 20, 3.0, 0.0).double())
    zero = torch.zeros(64)
    assert frechet_distance(zero, one, zero, two) == pytest.approx(2 * 20 + 3 * 44, rel=1e-9)


@pytest.mark.parametrize("smallest", [1e-6, 1e-10, 1e-13, 1e-16])
def test_near_singular_covariances(smallest):
    basis = rotation(64)
    one = torch.logspace(0, np.log10(smallest), 64, dtype=torch.float64)
    two = one.flip(0)
    zero = torch.zeros(64, dtype=torch.float64)
    distance = frechet_distance(zero, rotated(basis, one), zero, rotated(basis, two))
    assert distance == pytest.approx(closed_form(one, two, zero), rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_duplicated_features(seed):
    # Rounding decides whether such a matrix still has a Cholesky factor; the distance must not depend on it.
    features_NF = torch.randn(300, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigma = torch.cov(features_NF.repeat(1, 2).T)
    zero = torch.zeros(48)
    assert frechet_distance(zero, sigma, zero, 4 * sigma) == pytest.approx(sigma.trace().item(), rel=1e-11)


def test_fewer_images_than_features():
    few = torch.randn(10, 64, dtype=torch.float64)
    sigma = torch.cov(few.T)
    assert frechet_distance(few.mean(0), sigma, few.mean(0), sigma) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few.mean(0), sigma, few.mean(0), 4 * sigma) == pytest.approx(sigma.trace().item(), rel=1e-9)


def test_row_vector_means_and_single_precision_are_taken():
    basis = rotation(8)
    sigma = rotated(basis, spread(8)).float()
    assert frechet_distance(torch.ones(1, 8), sigma, torch.zeros(8), sigma.numpy()) == pytest.approx(8, rel=1e-6)


def test_wrong_statistics_are_errors():
    mean, sigma = torch.zeros(4), torch.eye(4)
    with pytest.raises(ValueError, match="4 features with statistics of 5"):
        frechet_distance(mean, sigma, torch.zeros(5), torch.eye(5))
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        frechet_distance(mean, torch.eye(5), mean, sigma)
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(mean, sigma, mean, sigma * float("nan"))
