"""Measured peak memory where N x K distances would be far beyond it: at N = K = 65,536 they would be 17 GB.

What a quantizer may hold beside what the caller gave it: the byte budget of a search, and some tensors of the size of
its inputs, outputs and codebooks (N x E, K x E, N and K numbers). The quick tests do the same with 2,048 and a budget
in proportion.
"""

import pytest
import torch

from benchmarks.quantizer_speed import extra_memory
from rqstack.quantizers import (
    LookupFreeQuantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    ResidualVectorOptions,
    SimQuantizer,
    VectorLosses,
    VectorOptions,
    VectorQuantizer,
    residual_simvq,
)
from rqstack.quantizers.arithmetic import nearest
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer

LARGE, SMALL = 65_536, 2_048
SMALL_BUDGET = 2**19  # a 32nd of the distances of the small size
DIM = 8
CPU = torch.device("cpu")


def vector(size, **settings):
    return VectorQuantizer(DIM, size, VectorOptions(**settings))


# name: (quantizer with that many codes, size of a vector, codes per vector)
METHODS = {
    "vq": (vector, DIM, 1),
    "cosine": (lambda size: vector(size, distance="cosine"), DIM, 1),
    "learned": (lambda size: vector(size, codebook="learned"), DIM, 1),
    "rotation": (lambda size: vector(size, estimator="rotation"), DIM, 1),
    "heads": (lambda size: VectorQuantizer(2 * DIM, size, heads=2, separate_codebooks=True), 2 * DIM, 2),
    "residual": (lambda size: ResidualQuantizer(DIM, (size,) * 2, shared=True), DIM, 2),
    "residual vectors": (lambda size: ResidualVectorQuantizer(DIM, size, 2, shared=True), DIM, 2),
    "beam": (lambda size: ResidualVectorQuantizer(DIM, size, 2, ResidualVectorOptions(beam_width=2)), DIM, 2),
    "simvq": (lambda size: SimQuantizer(DIM, size), DIM, 1),
    "residual simvq": (lambda size: residual_simvq(DIM, size, 2), DIM, 2),
    "random projection": (lambda size: RandomProjectionQuantizer(DIM, size, RandomProjectionOptions(DIM)), DIM, 1),
    "lfq": (lambda size: LookupFreeQuantizer(16, size, project=True), 16, 1),
    # these differ from "vq" in training alone
    "stochastic": (lambda size: vector(size, sample_temp=1.0), DIM, 1),
    "diversity": (lambda size: vector(size, losses=VectorLosses(diversity=0.1)), DIM, 1),
    "cross entropy": (lambda size: vector(size, losses=VectorLosses(cross_entropy=0.1)), DIM, 1),
    "gumbel": (lambda size: vector(size, estimator="gumbel", sample_temp=1.0), DIM, 1),
    "k-means": (lambda size: vector(size, kmeans_init=True, kmeans_iterations=2), DIM, 1),
}


def allowance(quantizer, size: int, dim: int, depth: int, copies: int) -> float:
    """MB: one search, and `copies` of everything the size of a vector, code or code vector, for every depth."""
    state = sum(tensor.nbytes for tensor in (*quantizer.parameters(), *quantizer.buffers()))
    return (nearest.CPU_CHUNK_BYTES + copies * (depth * size * (4 * dim + 8) + state)) / 1e6


def eval_peak(quantizer, size: int, dim: int) -> float:
    quantizer.eval()
    x = torch.randn(size, dim)

    @torch.no_grad()
    def run():
        quantizer(x)

    return extra_memory(run, CPU, warm_up=size == SMALL)


def train_peak(quantizer, size: int, dim: int) -> float:
    quantizer.train()
    x = torch.randn(size, dim, requires_grad=True)

    def run():
        out = quantizer(x)
        x.grad = None
        (out.quantized.sum() + out.loss).backward()
        quantizer.update_codebook()

    return extra_memory(run, CPU, warm_up=size == SMALL)


SIZES = [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.slow)]


@pytest.fixture
def budget(monkeypatch):
    """Make the byte budget fit the small size."""

    def fit(size):
        if size == SMALL:
            monkeypatch.setattr(nearest, "CPU_CHUNK_BYTES", SMALL_BUDGET)

    return fit


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_an_evaluation_holds_one_search_and_its_outputs(name, size, budget):
    budget(size)
    make, dim, depth = METHODS[name]
    quantizer = make(size)
    assert eval_peak(quantizer, size, dim) < allowance(quantizer, size, dim, depth, copies=4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_holds_one_search_and_its_outputs(name, size, budget):
    budget(size)
    make, dim, depth = METHODS[name]
    quantizer = make(size)
    assert train_peak(quantizer, size, dim) < allowance(quantizer, size, dim, depth, copies=10)


def test_the_measure_sees_a_matrix_of_distances(budget):
    """The test of the tests: a search on the whole matrix is far above what is allowed."""
    budget(SMALL)
    x, quantizer = torch.randn(SMALL, DIM), vector(SMALL)
    peak = extra_memory(lambda: (x @ quantizer.codebook(0).T).argmin(1), CPU)
    assert peak > 4 * SMALL**2 / 1e6 > 2 * allowance(quantizer, SMALL, DIM, 1, copies=8)
