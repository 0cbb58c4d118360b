"""Layers of vqtorch on two processes (gloo) and on one with the joint batch: start, replacement, inner optimizer."""

import pytest
import torch

from rqstack.quantizers.compat.vqtorch import GroupVectorQuant, ResidualVectorQuant, VectorQuant

ALTERNATING = {"beta": 1.0, "inplace_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=2.0, momentum=0.9)}
SETTINGS = [
    (VectorQuant, {"kmeans_init": True, "replace_freq": 2}),
    (VectorQuant, {"dist": "cosine", "replace_freq": 1}),
    (GroupVectorQuant, {"groups": 2, "share": False, "kmeans_init": True, "replace_freq": 2}),
    (ResidualVectorQuant, {"groups": 2, "replace_freq": 1, **ALTERNATING}),
    (ResidualVectorQuant, {"groups": 2, "share": False, "kmeans_init": True, **ALTERNATING}),
]
SHARES = {1: [16], 2: [6, 10]}


def train(rank, world, layer, options):
    torch.manual_seed(0)
    quantizer = layer(8, 24, dim=-1, **options)
    for step in range(4):
        z = torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(step))
        quantizer(z.split(SHARES[world])[rank])
    return quantizer.state_dict()


def results(rank, world):
    return [train(rank, world, *setting) for setting in SETTINGS]


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_two_processes_have_one_codebook_that_of_one_process(two_ranks, case):
    first, second = (states[case] for states in two_ranks)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = train(0, 1, *SETTINGS[case])
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    layer, options = SETTINGS[case]
    assert not torch.allclose(alone["codebook.weight"], layer(8, 24, dim=-1, **options).codebook.weight)
