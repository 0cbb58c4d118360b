"""Two processes (gloo) against one process on the joint batch: k-means start, updates, restarts and warm-up agree."""

import functools

import pytest
import torch

from rqstack.quantizers import ResidualQuantizer, RestartRule, VectorOptions, VectorQuantizer, codebook_warmup
from rqstack.quantizers.codebooks.affine import AffineRule
from tests.rqstack.quantizers.quantizer_methods import made

ADAM = functools.partial(torch.optim.Adam, lr=0.05)
SETTINGS = [
    {"kmeans_init": True},
    {"kmeans_init": True, "distance": "cosine", "restart": RestartRule(0.5, relative=True, grace=1)},
    {"kmeans_init": True, "heads": 2, "separate_codebooks": True, "restart": RestartRule(2.0)},
    {"kmeans_init": True, "heads": 2, "restart": RestartRule(0.5, relative=True)},
    {"kmeans_init": True, "codebook": "learned"},
    {"affine": AffineRule("running", batch_decay=0.5), "restart": RestartRule(unused_for=2)},
    {"kmeans_init": True, "codebook": "both", "distance": "cosine", "restart": RestartRule(1.0, grace=1), "seed": 3},
    {"codebook": "learned", "in_place_optimizer": ADAM, "restart": RestartRule(unused_for=1)},
    {
        "codebook": "learned",
        "in_place_optimizer": ADAM,
        "affine": AffineRule(groups=2),
        "heads": 2,
        "separate_codebooks": True,
    },
    {"codebook": "learned", "affine": AffineRule("running"), "distance": "cosine", "restart": RestartRule(0.5)},
]
STEPS, BATCH, MICRO = 3, 8, 2
SHARES = {1: [8], 2: [3, 5]}  # rows per rank


def vectors(step, world, rank):
    """This process's share of every micro-batch of a step; a quarter of the positions is masked."""
    z = torch.randn(MICRO, BATCH, 16, 8, generator=torch.Generator().manual_seed(step))
    return [micro.split(SHARES[world])[rank] for micro in z]


def train(rank, world, settings):
    """The state after the k-means start, and after some steps."""
    torch.manual_seed(0)
    model = made(VectorQuantizer, VectorOptions, 8, 24, **settings)
    states = []
    for step in range(STEPS):
        for z in vectors(step, world, rank):
            model(z, mask=torch.arange(16).expand(len(z), 16) < 12)
            if not states:
                states.append({name: value.clone() for name, value in model.state_dict().items()})
        model.update_codebook()
        if model.averaged:
            z = vectors(100 + step, world, rank)[0]
            codes = (z[..., : model.heads] * 4).abs().long() - 1
            model.update_from_codes(z, codes, mask=torch.arange(16).expand(len(z), 16) < 9)
    return [*states, {name: value.clone() for name, value in model.state_dict().items()}]


def warm(rank, world):
    torch.manual_seed(0)
    model = ResidualQuantizer(8, (8, 8))
    codebook_warmup(model, vectors(0, world, rank), "kmeans", num_batches=2)
    return model.state_dict()


def results(rank, world):
    return [train(rank, world, settings) for settings in SETTINGS], warm(rank, world)


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_ranks_agree_and_equal_one_process_after_start_and_after_updates(two_ranks, index):
    alone = train(0, 1, SETTINGS[index])
    for moment, expected in enumerate(alone):
        first, second = (results[index][moment] for results, _ in two_ranks)
        for name, value in expected.items():
            assert torch.equal(first[name], second[name]), name
            if moment > 0 or name.startswith(("initialized", "codebooks.0.num")):
                torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_start_is_the_same_for_every_split_of_the_batch(two_ranks):
    for index, settings in enumerate(SETTINGS):
        alone = train(0, 1, settings)[0]
        for name, value in alone.items():
            torch.testing.assert_close(two_ranks[0][0][index][0][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_warm_up_gives_all_ranks_the_same_codebooks(two_ranks):
    for name, value in two_ranks[0][1].items():
        assert torch.equal(value, two_ranks[1][1][name]), name
        assert value.isfinite().all()
