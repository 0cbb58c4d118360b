"""The training order: a permutation per epoch, the same on any number of ranks, derivable from one number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from data.noise import hash_keys, permutation, uniforms
from data.order import Groups, TrainOrder, global_index, noise_key


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
    assert [global_index(np.array([position]), 17, 5)[0] for position in range(51)] == epochs.ravel().tolist()


@pytest.mark.parametrize(("ranks", "accumulation", "batch"), [(1, 1, 12), (2, 3, 2), (3, 1, 4), (4, 3, 1), (1, 12, 1)])
def test_global_batch_is_the_same_however_it_is_cut(ranks, accumulation, batch):
    whole = TrainOrder(100, 1, 12)
    cut = [TrainOrder(100, 1, batch, rank, ranks, accumulation) for rank in range(ranks)]
    steps = 20  # crosses epochs
    expected = _positions(whole, steps)
    parts = [list(itertools.islice(iter(order), steps * accumulation)) for order in cut]
    joined = [pair for micro in range(steps * accumulation) for rank in range(ranks) for pair in parts[rank][micro]]
    assert joined == expected
    index_N = global_index(np.arange(240), 100, 1)
    assert joined == list(zip(index_N.tolist(), (np.arange(240) // 100 * 100 + index_N).tolist()))


GROUPS = Groups((5, 1, 9, 4, 4, 7), window=2)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize(("ranks", "accumulation", "batch"), [(2, 2, 3), (4, 3, 1), (3, 4, 1)])
def test_a_run_may_go_on_with_another_number_of_ranks(groups, ranks, accumulation, batch):
    before = [TrainOrder(30, 1, 6, rank, 2, groups=groups) for rank in range(2)]
    steps = 4  # to the middle of the second epoch
    after = [TrainOrder(30, 1, batch, rank, ranks, accumulation, steps * 12, groups) for rank in range(ranks)]
    batches = [order.micro_batch(step) for step in range(steps) for order in before]
    batches += [order.micro_batch(number) for number in range(steps * accumulation) for order in after]
    seen = [(int(index), int(key)) for index_B, key_B in batches for index, key in zip(index_B, key_B)]
    assert seen == _positions(TrainOrder(30, 1, 12, groups=groups), 8)


def test_noise_belongs_to_epoch_and_sample_wherever_it_comes():
    keys = [
        dict(pair for pair in _positions(TrainOrder(30, seed, 10, groups=groups), 6)[30:])
        for seed, groups in ((1, None), (2, None), (1, GROUPS))
    ]
    assert keys[0] == keys[1] == keys[2] == {index: 30 + index for index in range(30)}
    assert noise_key(np.array([29, 30]), np.array([4, 4]), 30).tolist() == [4, 34]


def test_shards_are_shuffled_and_few_are_open_at_a_time():
    groups = Groups((50,) * 40, window=4)
    shard_of = np.repeat(np.arange(40), 50)
    epochs = [global_index(np.arange(2000) + 2000 * epoch, 2000, 7, groups) for epoch in range(2)]
    for order_N in epochs:
        np.testing.assert_array_equal(np.sort(order_N), np.arange(2000))
        shards_N = shard_of[order_N]
        first = np.array([np.flatnonzero(shards_N == shard)[0] for shard in range(40)])
        last = np.array([np.flatnonzero(shards_N == shard)[-1] for shard in range(40)])
        opened = (first[:, None] <= np.arange(2000)) & (np.arange(2000) <= last[:, None])
        assert opened.sum(0).max() <= 4 + 1
        assert len(set(shards_N[1000:1050])) > 2  # mixed, not one after the other
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], global_index(np.arange(2000), 2000, 8, groups))


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_resuming_continues_the_order(groups):
    whole = _positions(TrainOrder(30, 2, 8, groups=groups), 10)
    assert _positions(TrainOrder(30, 2, 8, start_image=48, groups=groups), 4) == whole[48:]


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
