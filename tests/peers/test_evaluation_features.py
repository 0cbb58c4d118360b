"""IS, KID, precision, recall, density and coverage beside torch-fidelity and prdc, on the same features."""

from __future__ import annotations

import pytest
import torch

from evaluation.metrics.inception_score import inception_score
from evaluation.metrics.kid import KernelSettings, kernel_distance
from evaluation.metrics.manifold import ManifoldSettings, overlap

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def features():
    """Samples and reals whose balls overlap in part, as rectified features do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 256, generator=generator) / 12**0.5
    samples = torch.randn(1500, 12, generator=generator) * torch.linspace(0.4, 1.2, 12) + 0.4
    reals = torch.randn(1800, 12, generator=generator)
    return (samples @ mixing).relu(), (reals @ mixing).relu()


@pytest.mark.parametrize("shift", [0.0, 50.0])
@pytest.mark.parametrize(("subsets", "size", "seed"), [(20, 300, 2020), (5, 1000, 7), (1, 1500, 0)])
def test_kid_equals_torch_fidelitys(features, subsets, size, seed, shift):
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    samples, reals = (x + shift / 256 for x in features)
    theirs = metric.kid_features_to_metric(
        samples, reals, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    mean, std = kernel_distance(samples, reals, KernelSettings(subsets, size, seed))
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    # Theirs divides by the number of subsets, ours by one less.
    biased = std * ((subsets - 1) / subsets) ** 0.5
    assert biased == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3, abs=1e-9)


def test_precision_and_recall_equal_torch_fidelitys(features):
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = metric.prc_features_to_metric(
        *features, prc_neighborhood=3, prc_batch_size=500, save_cpu_ram=True, verbose=False
    )
    ours = overlap(*features)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-3)
    assert 0.05 < ours.precision < 0.95 and 0.05 < ours.recall < 0.95


@pytest.mark.parametrize("k", [1, 3, 5])
def test_overlap_equals_prdcs(features, k):
    prdc = pytest.importorskip("prdc")
    samples, reals = (x.numpy() for x in features)
    theirs = prdc.compute_prdc(real_features=reals, fake_features=samples, nearest_k=k)
    assert overlap(*features, ManifoldSettings(k, k))._asdict() == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_equals_torch_fidelitys(splits):
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    logits_NY = 2 * torch.randn(1234, 1008)
    theirs = metric.isc_features_to_metric(logits_NY, splits=splits, shuffle=False)
    mean, std = inception_score(logits_NY, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert std * ((splits - 1) / splits) ** 0.5 == pytest.approx(theirs["inception_score_std"], rel=1e-3, abs=1e-9)
