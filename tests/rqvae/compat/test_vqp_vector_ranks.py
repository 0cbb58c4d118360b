"""`VectorQuantize` on two processes (gloo) against one process on the joint batch."""

import pytest
import torch
import torch.distributed as dist

from rqvae.quantizers.compat.vector_quantize_pytorch import VectorQuantize
from tests.processes import start_processes

ADAM = dict(
    learnable_codebook=True, ema_update=False,
    in_place_codebook_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
)
SETTINGS = [
    dict(),
    dict(kmeans_init=True),
    dict(kmeans_init=True, threshold_ema_dead_code=2.0, use_cosine_sim=True),
    dict(kmeans_init=True, heads=2, codebook_dim=4, separate_codebook_per_head=True, threshold_ema_dead_code=2.0),
    dict(affine_param=True, sync_affine_param=True),
    ADAM,
]
APART = [
    dict(sync_codebook=False),
    dict(sync_codebook=False, kmeans_init=True),
    dict(kmeans_init=True, sync_kmeans=False),
]
STEPS = 3


def train(rank, world, settings):
    torch.manual_seed(0)
    quantizer = VectorQuantize(dim=8, codebook_size=24, **settings)
    for step in range(STEPS):
        x = torch.randn(8, 16, 8, generator=torch.Generator().manual_seed(step))
        mask = torch.arange(16).expand(8, 16) < 12
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        quantizer(x[share], mask=mask[share])
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save([train(rank, world, settings) for settings in SETTINGS + APART], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(worker, 2, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_two_processes_equal_one(two_ranks, index):
    first, second = (rank[index] for rank in two_ranks)
    alone = train(0, 1, SETTINGS[index])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(len(APART)))
def test_codebooks_kept_apart_differ(two_ranks, index):
    first, second = (rank[len(SETTINGS) + index] for rank in two_ranks)
    assert not torch.equal(first["_codebook.embed"], second["_codebook.embed"])
