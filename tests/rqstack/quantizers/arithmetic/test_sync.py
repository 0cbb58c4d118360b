"""Two processes (gloo) against one process on the joint batch: codebooks, restarts and codes are the same."""

import pytest
import torch

from rqstack.quantizers import ResidualQuantizer
from rqstack.quantizers.arithmetic import sync

SETTINGS = [
    {"num_codes": (16, 16), "shared": True, "restart_unused_codes": True, "codebook_update": "deferred"},
    {"num_codes": (16, 12), "restart_unused_codes": True, "codebook_update": "deferred"},
    {"num_codes": (16, 16), "shared": True, "restart_unused_codes": True, "codebook_update": "per_depth"},
    {"num_codes": (64, 64), "shared": True, "restart_unused_codes": True, "codebook_update": "deferred"},
]
STEPS, BATCH, MICRO = 3, 8, 2
SHARES = {1: [8], 2: [3, 5]}  # rows per rank; uneven, as the last batch of an epoch can be


def quantizer(settings):
    torch.manual_seed(0)
    return ResidualQuantizer(4, **settings)


def vectors(step):
    """The global batch of a step: (micro-batches, ranks * rows per rank, positions, E)."""
    return torch.randn(MICRO, BATCH, 2, 4, generator=torch.Generator().manual_seed(step))


def train(rank, world, settings):
    """The state after some steps, where this process sees its share of every micro-batch."""
    model = quantizer(settings)
    for step in range(STEPS):
        for micro in vectors(step):
            model(micro.split(SHARES[world])[rank])
        model.update_codebook()
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_without_accumulation(settings):
    """One process and one forward per step over the same global batch."""
    model = quantizer(settings)
    for step in range(STEPS):
        model(vectors(step).flatten(0, 1))
        model.update_codebook()
    return model.state_dict()


def results(rank, world):
    assert sync.world_size() == world
    assert sync.rank() == rank
    gathered = sync.all_gather_rows(torch.tensor([rank + 1.0, 2.0])).tolist()
    assert gathered == [[1.0, 2.0], [2.0, 2.0]]
    return [train(rank, world, settings) for settings in SETTINGS]


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_ranks_agree_and_equal_one_process(two_ranks, index):
    alone = train(0, 1, SETTINGS[index])
    initial = quantizer(SETTINGS[index]).state_dict()
    for name, value in alone.items():
        assert torch.equal(two_ranks[0][index][name], two_ranks[1][index][name]), name
        torch.testing.assert_close(two_ranks[0][index][name], value, atol=1e-5, rtol=1e-5, msg=name)
        assert not torch.equal(value, initial[name]), name


@pytest.mark.parametrize("index", [0, 1, 3])
def test_deferred_updates_depend_on_the_global_batch_only(two_ranks, index):
    """Two ranks with two micro-batches each restart the same entries with the same vectors as a single large batch."""
    for name, value in train_without_accumulation(SETTINGS[index]).items():
        torch.testing.assert_close(two_ranks[0][index][name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_alone_the_collectives_do_nothing():
    tensor = torch.ones(3)
    sync.all_reduce_sum(tensor)
    assert tensor.tolist() == [1, 1, 1]
    assert sync.all_gather_rows(tensor).shape == (1, 3)
    assert (sync.rank(), sync.world_size(), sync.is_distributed()) == (0, 1, False)
