from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.metrics import kid
from evaluation.metrics.kid import KernelDistance, KernelSettings, kernel_distance, polynomial_mmd
from evaluation.metrics.metric import WholeSet
from tests.evaluation.pixel_features import PixelFeatures


@pytest.fixture
def features():
    return torch.randn(70, 6), 1.3 * torch.randn(50, 6) + 0.4


def by_definition(x, y):
    """Sums over pairs, one by one (Binkowski et al. 2018, Eq. 4)."""
    x, y = x.double().numpy(), y.double().numpy()

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    xx = np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    yy = np.mean([kernel(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j])
    return xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_against_the_definition(features):
    assert polynomial_mmd(*features) == pytest.approx(by_definition(*features), rel=1e-10)


def test_blocks_do_not_change_it(features, monkeypatch):
    expected = polynomial_mmd(*features)
    monkeypatch.setattr(kid, "_KERNEL_ROWS", 7)
    assert polynomial_mmd(*features) == pytest.approx(expected, rel=1e-11)


def test_closed_form_of_constant_sets():
    # Every kernel value within x is (4 / 1 + 1)^3, within y (1 + 1)^3, across (2 + 1)^3.
    x, y = torch.full((5, 1), 2.0), torch.full((9, 1), 1.0)
    assert polynomial_mmd(x, y) == pytest.approx(125 + 8 - 2 * 27, rel=1e-12)


def test_unbiased_over_draws_of_one_distribution():
    values = torch.tensor([polynomial_mmd(torch.randn(40, 4), torch.randn(40, 4)) for _ in range(300)])
    error = values.std() / 300**0.5
    assert abs(values.mean()) < 4 * error
    assert (values < 0).any()


def test_the_subset_of_everything_is_the_whole(features):
    x, y = features[0][:50], features[1]
    mean, std = kernel_distance(x, y, KernelSettings(subsets=3, subset_size=50))
    assert mean == pytest.approx(polynomial_mmd(x, y), rel=1e-10)
    assert std == pytest.approx(0, abs=1e-12)


def test_mean_and_deviation_over_seeded_subsets(features):
    x, y = features
    draws = np.random.RandomState(7)
    expected = torch.tensor([
        polynomial_mmd(x[draws.choice(70, 20, replace=False)], y[draws.choice(50, 20, replace=False)])
        for _ in range(8)
    ], dtype=torch.float64)  # fmt: skip
    result = kernel_distance(x, y, KernelSettings(8, 20, seed=7))
    assert result == pytest.approx((expected.mean().item(), expected.std().item()), rel=1e-12)
    assert result == kernel_distance(x, y, KernelSettings(8, 20, seed=7))
    assert result != kernel_distance(x, y, KernelSettings(8, 20, seed=8))


def test_wrong_input_is_an_error(features):
    x, y = features
    with pytest.raises(ValueError, match=r"51 images do not fit: choose 2\.\.50"):
        kernel_distance(x, y, KernelSettings(1, 51))
    with pytest.raises(ValueError, match="at least 1 subset, got 0"):
        kernel_distance(x, y, KernelSettings(0, 10))
    with pytest.raises(ValueError, match="got 1 and 50"):
        polynomial_mmd(x[:1], y)
    with pytest.raises(ValueError, match="6 features with 5"):
        polynomial_mmd(x, y[:, :5])


def test_the_order_of_the_images_changes_nothing():
    """Files sorted by class, renamed, or in shards: subsets are drawn from the same images."""
    torch.manual_seed(3)
    features_NF, reference_MF = torch.rand(60, 12), torch.rand(50, 12) + 0.1

    def distance(order_N, order_M):
        metric = KernelDistance(PixelFeatures(), {"train": reference_MF[order_M]}, KernelSettings(5, 20))
        return metric.result(WholeSet(features_NF[order_N], torch.full((60,), -1))).values

    first = distance(torch.arange(60), torch.arange(50))
    assert distance(torch.randperm(60), torch.randperm(50)) == first
    assert distance(torch.arange(60).flip(0), torch.arange(50)) == first
