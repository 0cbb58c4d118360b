"""Two processes (gloo) have the loss terms and gradients of one process with the joint batch."""

import pytest
import torch

from rqstack.quantizers import LatentOptions, LookupFreeOptions, LookupFreeQuantizer, ScalarPerturbationOptions
from rqstack.quantizers.methods.latent_quantization import LatentQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationQuantizer

ROWS = 10
SHARES = {1: [10], 2: [4, 6]}  # rows per rank
QUANTIZERS = {
    "lfq": lambda: LookupFreeQuantizer(6, 64, LookupFreeOptions(inv_temperature=1.0, commitment_weight=0.0)),
    "lfq, groups of bits, codebooks": lambda: LookupFreeQuantizer(
        6, 8, LookupFreeOptions(joint_bits=2, inv_temperature=1.0, commitment_weight=0.0), num_codebooks=2
    ),
    "fsp": lambda: ScalarPerturbationQuantizer(
        6, ScalarPerturbationOptions([4] * 6, skewness_weight=0.06, kurtosis_weight=0.05)
    ),
}
JOINT_TERM = {"fsp": "moments"}  # otherwise diversity


def share_of(rank, world):
    """This process's rows of the batch, and which of them count."""
    batch = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0)).exp() - 1.5
    mask = torch.arange(ROWS) % 4 < 3
    return batch.split(SHARES[world])[rank].clone(), mask.split(SHARES[world])[rank]


def joint_term(name, rank, world):
    """The term that speaks of the whole batch, and its gradient in this process's rows."""
    z, mask = share_of(rank, world)
    z.requires_grad_()
    loss = QUANTIZERS[name]().forward(z, mask).terms[JOINT_TERM.get(name, "diversity")]
    loss.backward()
    return loss.detach(), z.grad


def latent_values(rank, world):
    """The values after one in-place step on two micro-batches of unequal, masked shares."""
    quantizer = LatentQuantizer(
        6, LatentOptions([3] * 6), in_place_optimizer=lambda values: torch.optim.SGD(values, lr=1.0)
    )
    z, mask = share_of(rank, world)
    quantizer(z, mask)
    quantizer(2 * z, ~mask)
    quantizer.update_codebook()
    return torch.stack([values.data for values in quantizer.values])


def results(rank, world):
    return {name: joint_term(name, rank, world) for name in QUANTIZERS}, latent_values(rank, world)


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_terms_over_the_joint_batch(two_ranks, name):
    loss, gradient = joint_term(name, 0, 1)
    (first, first_grad), (second, second_grad) = (terms[name] for terms, _ in two_ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, loss)
    averaged = torch.cat([first_grad, second_grad]) / 2  # what data-parallel training does to every parameter
    torch.testing.assert_close(averaged, gradient, atol=1e-7, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


def test_values_after_an_in_place_step(two_ranks):
    assert torch.equal(two_ranks[0][1], two_ranks[1][1])
    torch.testing.assert_close(two_ranks[0][1], latent_values(0, 1))
