"""Two processes (gloo) against one process on the joint batch: residual vector quantizers agree after start, updates,
restarts and dropout."""

import pytest
import torch

from rqstack.quantizers import ResidualVectorOptions, ResidualVectorQuantizer, RestartRule
from tests.rqstack.quantizers.quantizer_methods import made

RESTART = RestartRule(0.5, relative=True)
SETTINGS = [
    {"kmeans_init": True, "restart": RESTART},
    {"shared": True, "beam_width": 3, "kmeans_init": True, "restart": RESTART},
    {"quantize_dropout": True, "distance": "cosine"},
    {"codebook_dim": 4, "beam_width": 2, "kmeans_init": True},
]
STEPS, BATCH, MICRO = 3, 8, 2
SHARES = {1: [8], 2: [3, 5]}  # rows per rank


def vectors(step, world, rank):
    """This process's share of every micro-batch of a step."""
    z = torch.randn(MICRO, BATCH, 16, 8, generator=torch.Generator().manual_seed(step))
    return [micro.split(SHARES[world])[rank] for micro in z]


def train(rank, world, settings):
    torch.manual_seed(0)
    model = made(ResidualVectorQuantizer, ResidualVectorOptions, 8, 24, 3, **settings)
    torch.manual_seed(1 + 7 * rank)
    kept = []
    for step in range(STEPS):
        for z in vectors(step, world, rank):
            out = model(z, mask=torch.arange(16).expand(len(z), 16) < 12)
            kept.append(int((out.codes[0, 0] >= 0).sum()))
        model.update_codebook()
    return kept, dict(model.state_dict())


def results(rank, world):
    return [train(rank, world, settings) for settings in SETTINGS]


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_ranks_agree_and_equal_one_process(two_ranks, index):
    kept, expected = train(0, 1, SETTINGS[index])
    (first_kept, first), (second_kept, second) = (results[index] for results in two_ranks)
    assert first_kept == second_kept == kept
    assert (len(set(kept)) > 1) == SETTINGS[index].get("quantize_dropout", False)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4, msg=name)
