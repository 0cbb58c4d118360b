"""`VectorQuantize` and the quantizers made of it on two processes (gloo) against one process on the joint batch."""

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch import (
    GroupedResidualVQ,
    HierarchicalVQ,
    ResidualVQ,
    VectorQuantize,
)

ADAM = dict(
    learnable_codebook=True,
    ema_update=False,
    in_place_codebook_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
)
# few codes: clusters of one vector leave nothing over, and which code is nearest to nothing is up to rounding
LEVELS = dict(num_quantizers=3, codebook_size=6)
EXPIRY = dict(kmeans_init=True, kmeans_iters=3, threshold_ema_dead_code=2.0)
SETTINGS = [
    (VectorQuantize, dict()),
    (VectorQuantize, dict(kmeans_init=True)),
    (VectorQuantize, dict(use_cosine_sim=True, **EXPIRY)),
    (VectorQuantize, dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, **EXPIRY)),
    (VectorQuantize, dict(affine_param=True, sync_affine_param=True)),
    (VectorQuantize, ADAM),
    (ResidualVQ, dict(**LEVELS, **EXPIRY)),
    (ResidualVQ, dict(shared_codebook=True, codebook_dim=4, **LEVELS, **EXPIRY)),
    (ResidualVQ, dict(beam_size=3, **LEVELS, **EXPIRY)),
    (ResidualVQ, dict(use_cosine_sim=True, **LEVELS, **EXPIRY)),
    (ResidualVQ, dict(shared_codebook=True, **LEVELS, **ADAM)),
    (GroupedResidualVQ, dict(groups=2, **LEVELS, **EXPIRY)),
    (HierarchicalVQ, dict(scales=(1, 4, 16), channel_first=False, kmeans_iters=3)),
    (HierarchicalVQ, dict(scales=(2, 8), channel_first=False, shared_codebook=False, kmeans_iters=3)),
]
APART = [
    (VectorQuantize, dict(sync_codebook=False)),
    (VectorQuantize, dict(sync_codebook=False, kmeans_init=True)),
    (VectorQuantize, dict(kmeans_init=True, sync_kmeans=False)),
]
# the levels kept are drawn from the sum of the processes' draws: the same for them, not those of one process alone
DROPOUT = [
    (ResidualVQ, dict(quantize_dropout=True, num_quantizers=6)),
    (GroupedResidualVQ, dict(groups=2, quantize_dropout=True, num_quantizers=6)),
    (HierarchicalVQ, dict(scales=(1, 2, 4, 8), nested_dropout=0.8, channel_first=False, kmeans_iters=1)),
]
STEPS = 3


def train(rank, world, kind, settings):
    torch.manual_seed(0)
    quantizer = kind(**{"dim": 8, "codebook_size": 24, **settings})
    torch.manual_seed(rank)
    for step in range(STEPS):
        x = torch.randn(8, 16, 8, generator=torch.Generator().manual_seed(step))
        mask = torch.arange(16).expand(8, 16) < 12
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        quantizer(x[share], mask=mask[share])
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def levels_kept(rank, kind, settings):
    """How many levels each of several forwards keeps."""
    torch.manual_seed(0)
    quantizer = kind(dim=8, codebook_size=24, **settings)
    torch.manual_seed(rank)
    kept = []
    for _ in range(12):
        if kind is HierarchicalVQ:
            cutoff = quantizer(torch.randn(4, 16, 8), return_cutoff=True)[3]
            kept.append(len(quantizer.scales) if cutoff is None else cutoff + 1)
        else:
            kept.append(int((quantizer(torch.randn(4, 16, 8))[1].flatten(0, -2)[0] >= 0).sum()))
    return torch.tensor(kept)


def results(rank, world):
    states = [train(rank, world, *setting) for setting in SETTINGS + APART]
    return states, [levels_kept(rank, *setting) for setting in DROPOUT]


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_two_processes_equal_one(two_ranks, index):
    first, second = (states[index] for states, _ in two_ranks)
    alone = train(0, 1, *SETTINGS[index])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(len(APART)))
def test_codebooks_kept_apart_differ(two_ranks, index):
    first, second = (states[len(SETTINGS) + index] for states, _ in two_ranks)
    assert not torch.equal(first["_codebook.embed"], second["_codebook.embed"])


@pytest.mark.parametrize("index", range(len(DROPOUT)))
def test_processes_drop_the_same_levels(two_ranks, index):
    first, second = (kept[index] for _, kept in two_ranks)
    assert torch.equal(first, second)
    assert len(first.unique()) > 1
