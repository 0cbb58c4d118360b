"""Frechet distances in 2048 dimensions, of few samples, and what is said about weak statistics."""

from __future__ import annotations

import pytest
import torch

from evaluation.metrics.frechet import (
    frechet_between,
    frechet_distance,
    frechet_to_samples,
    frechet_warnings,
    is_singular,
)
from evaluation.statistics import Gaussian, statistics_of

DIM = 2048


def reflected(variance_F):
    """Q diag(variance) Q with one Householder reflection Q, the same for every call."""
    dim = len(variance_F)
    v_F = torch.randn(dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v_F /= v_F.norm()
    left_FF = torch.diag(variance_F) - 2 * torch.outer(v_F, v_F * variance_F)
    return left_FF - 2 * torch.outer(left_FF @ v_F, v_F)


def closed_form(variance1_F, variance2_F, shift_F):
    return ((variance1_F.sqrt() - variance2_F.sqrt()).square() + shift_F.square()).sum().item()


def check(variance1_F, variance2_F):
    shift_F = torch.linspace(-0.1, 0.2, DIM, dtype=torch.float64)
    distance = frechet_distance(shift_F, reflected(variance1_F), 0 * shift_F, reflected(variance2_F))
    assert distance == pytest.approx(closed_form(variance1_F, variance2_F, shift_F), rel=1e-6)


SPREAD = torch.linspace(0.1, 4, DIM, dtype=torch.float64)
FLAT = torch.linspace(3, 0.5, DIM, dtype=torch.float64)


def cut(variance_F, rank):
    return torch.where(torch.arange(DIM) < rank, variance_F, 0.0)


def test_full_rank_in_2048_dimensions():
    check(SPREAD, FLAT)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(999, 2048), (2048, 999), (999, 500), (0, 999)])
def test_singular_in_2048_dimensions(ranks):
    check(cut(SPREAD, ranks[0]), cut(FLAT, ranks[1]))


@pytest.mark.slow
@pytest.mark.parametrize("smallest", [-8, -12, -16])
def test_near_singular_in_2048_dimensions(smallest):
    variance_F = torch.logspace(0, smallest, DIM, dtype=torch.float64)
    check(variance_F, 2 * variance_F.flip(0))


@pytest.mark.parametrize("num", [2, 9, 40, 100])
@pytest.mark.parametrize("reference_num", [20, 500])
def test_few_samples_give_the_distance_of_their_moments(num, reference_num):
    features_NF = torch.randn(num, 48) + 0.3
    reference = statistics_of([2 * torch.randn(reference_num, 48)], 48).gaussian()
    expected = frechet_between(statistics_of([features_NF], 48).gaussian(), reference)
    assert frechet_to_samples(features_NF, reference) == pytest.approx(expected, rel=1e-6)


def test_samples_of_the_reference_itself_are_at_no_distance():
    features_NF = torch.randn(30, 48, dtype=torch.float64)
    reference = statistics_of([features_NF], 48).gaussian()
    assert frechet_to_samples(features_NF, reference) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        frechet_to_samples(features_NF[:1], reference)
    with pytest.raises(ValueError, match="47 features with 48"):
        frechet_to_samples(features_NF[:, :47], reference)


def gaussian_of(covariance_FF, num):
    return Gaussian(torch.zeros(len(covariance_FF)), covariance_FF.double(), num)


def test_singular_covariances_are_recognised():
    regular = torch.diag(torch.linspace(1e-6, 5, 10))
    assert not is_singular(gaussian_of(regular, 11))
    assert not is_singular(gaussian_of(regular, 0))  # a size that is not known
    assert is_singular(gaussian_of(regular, 10))  # no more images than features
    dead = regular.clone()
    dead[3, 3] = 0
    assert is_singular(gaussian_of(dead, 5000))
    features_NF = torch.randn(300, 10, dtype=torch.float64)
    twice = torch.cat([features_NF, features_NF[:, :1]], 1)
    assert is_singular(statistics_of([twice], 11).gaussian())
    assert is_singular(gaussian_of(torch.zeros(4, 4), 100))


def test_warnings_say_what_is_weak():
    eye = torch.eye(10)
    assert frechet_warnings(gaussian_of(eye, 2048), "x") == []
    assert frechet_warnings(gaussian_of(eye, 0), "x") == []
    few, singular = frechet_warnings(gaussian_of(eye, 9), "val")
    assert "only 9 images behind val, under 2048" in few
    assert "covariance of val is singular (9 images, 10 features)" in singular
    (singular,) = frechet_warnings(gaussian_of(0 * eye, 0), "val")
    assert "(unknown number of images, 10 features)" in singular
