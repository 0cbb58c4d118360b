from __future__ import annotations

import pytest
import torch

from evaluation.metrics.frechet import frechet_between
from evaluation.statistics import StreamingStatistics, no_reduce, statistics_of

FEATURES_NF = torch.randn(101, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 50


def assert_same(first, second, rtol=1e-12):
    for a, b in zip(first, second):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 101])
def test_batches_give_mean_and_covariance(batch_size):
    gaussian = statistics_of(FEATURES_NF.split(batch_size), 16).gaussian()
    assert_same(gaussian, (FEATURES_NF.mean(0), torch.cov(FEATURES_NF.T), 101))
    assert torch.equal(gaussian.covariance_FF, gaussian.covariance_FF.T)


def test_a_far_mean_costs_no_digits():
    # Sums of squares would lose everything here: the mean is 1e8 standard deviations away.
    far_NF = torch.randn(500, 4, dtype=torch.float64) + 1e8
    gaussian = statistics_of(far_NF.split(13), 4).gaussian()
    torch.testing.assert_close(gaussian.covariance_FF, torch.cov(far_NF.T), rtol=1e-6, atol=1e-6)


def test_half_precision_features_are_summed_in_float64():
    half_NF = FEATURES_NF.half()
    assert_same(statistics_of(half_NF.split(10), 16).gaussian(), statistics_of([half_NF.double()], 16).gaussian())


def test_merging_equals_seeing_everything():
    merged = statistics_of([FEATURES_NF[:20]], 16)
    merged.merge(statistics_of([FEATURES_NF[20:21]], 16)).merge(StreamingStatistics(16))
    merged = StreamingStatistics(16).merge(merged).merge(statistics_of([FEATURES_NF[21:]], 16))
    assert_same(merged.gaussian(), statistics_of([FEATURES_NF], 16).gaussian())


def test_an_empty_batch_changes_nothing():
    statistics = statistics_of([FEATURES_NF[:0], FEATURES_NF, FEATURES_NF[:0]], 16)
    assert_same(statistics.gaussian(), statistics_of([FEATURES_NF], 16).gaussian())


@pytest.mark.parametrize("centre", [None, FEATURES_NF[0]])
def test_sum_form_is_additive(centre):
    parts = [statistics_of([part], 16).tensors(centre) for part in FEATURES_NF.split(40)]
    summed = [sum(tensors) for tensors in zip(*parts)]
    joint = StreamingStatistics.from_tensors(*summed, centre)
    assert_same(joint.gaussian(), statistics_of([FEATURES_NF], 16).gaussian(), rtol=1e-10)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ranks_and_batch_sizes_give_the_same_frechet_distance(run_ranks, world_size, batch_size):
    def rank_statistics(rank, reduce):
        batches = FEATURES_NF[rank::world_size].split(batch_size)
        return statistics_of(batches, 16).all_reduce(reduce).gaussian()

    other = statistics_of([FEATURES_NF[:50] * 1.3], 16).gaussian()
    expected = frechet_between(statistics_of([FEATURES_NF], 16).gaussian(), other)
    for gaussian in run_ranks(world_size, rank_statistics):
        assert frechet_between(gaussian, other) == pytest.approx(expected, rel=1e-9)
        assert gaussian.num == 101


def test_a_rank_without_images_counts_nothing(run_ranks):
    def rank_statistics(rank, reduce):
        return statistics_of([FEATURES_NF][rank:], 16).all_reduce(reduce).gaussian()

    for gaussian in run_ranks(2, rank_statistics):
        assert_same(gaussian, statistics_of([FEATURES_NF], 16).gaussian())


def test_no_images_at_all_survive_the_reduction():
    assert StreamingStatistics(4).all_reduce(no_reduce).count == 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_covariance(count):
    with pytest.raises(ValueError, match=f"got {count}"):
        statistics_of([FEATURES_NF[:count]], 16).gaussian()


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match=r"\(101, 16\)"):
        StreamingStatistics(8).update(FEATURES_NF)
    with pytest.raises(ValueError, match="16"):
        StreamingStatistics(8).merge(StreamingStatistics(16))
