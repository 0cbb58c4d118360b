"""The training order: a permutation per epoch, the same on any number of ranks, derivable from one number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from data.noise import hash_keys, permutation, uniforms
from data.order import TrainOrder, global_index


def _positions(order: TrainOrder, batches: int) -> list[tuple[int, int]]:
    return list(itertools.chain.from_iterable(itertools.islice(iter(order), batches)))


def test_hash_is_pinned_and_depends_on_every_key_and_its_order():
    # Stored runs depend on these values: a change would silently reorder training.
    assert hash_keys(0).tolist() == 16294208416658607535
    assert hash_keys(1, 2).tolist() != hash_keys(2, 1).tolist() != hash_keys(1).tolist()
    values = hash_keys(7, np.arange(1000))
    assert len(np.unique(values)) == 1000
    assert hash_keys(7, 5).tolist() == values[5].tolist()
    assert hash_keys(-1).tolist() == hash_keys(2**64 - 1).tolist()


def test_uniforms_do_not_depend_on_batching_and_are_uniform():
    draws = uniforms(3, 11, np.arange(20_000))
    np.testing.assert_array_equal(uniforms(3, 11, np.arange(500, 600)), draws[500:600])
    assert 0 <= draws.min() and draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(0), 1 / 12, atol=0.003)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize("size", [1, 2, 7, 1438])
def test_permutation_is_one(size):
    np.testing.assert_array_equal(np.sort(permutation(size, 3)), np.arange(size))


def test_permutation_moves_every_value_everywhere():
    first = np.bincount([permutation(5, seed)[0] for seed in range(2000)], minlength=5)
    assert (np.abs(first / 2000 - 0.2) < 0.04).all()


def test_every_epoch_has_every_sample_once_in_another_order():
    epochs = global_index(np.arange(3 * 17), 17, seed=5).reshape(3, 17)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(17))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(global_index(np.arange(17), 17, seed=6)) != tuple(epochs[0])
    assert [global_index(position, 17, 5) for position in range(51)] == epochs.ravel().tolist()


@pytest.mark.parametrize(("ranks", "accumulation", "batch"), [(1, 1, 12), (2, 3, 2), (3, 1, 4), (4, 3, 1), (1, 12, 1)])
def test_global_batch_is_the_same_however_it_is_cut(ranks, accumulation, batch):
    whole = TrainOrder(100, 1, 12)
    cut = [TrainOrder(100, 1, batch, rank, ranks, accumulation) for rank in range(ranks)]
    assert all(order.global_batch_size == 12 for order in cut)
    steps = 20  # crosses epochs
    expected = _positions(whole, steps)
    parts = [list(itertools.islice(iter(order), steps * accumulation)) for order in cut]
    joined = [pair for micro in range(steps * accumulation) for rank in range(ranks) for pair in parts[rank][micro]]
    assert joined == expected
    assert [position for _, position in joined] == list(range(240))


def test_resuming_continues_the_order():
    whole = _positions(TrainOrder(30, 2, 8), 10)
    assert _positions(TrainOrder(30, 2, 8, start_image=48), 4) == whole[48:]


def test_order_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    _positions(TrainOrder(30, 2, 8), 10)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_samples=0, batch_size=1), "at least one sample"),
        (dict(num_samples=5, batch_size=0), "batch_size and accumulation must be at least 1, not 0 and 1"),
        (dict(num_samples=5, batch_size=1, rank=2, world_size=2), r"rank must be in \[0, 2\), not 2"),
        (dict(num_samples=5, batch_size=1, start_image=-1), "start_image must not be negative"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainOrder(seed=0, **arguments)
