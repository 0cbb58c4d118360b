"""Dropout of a branch: shares, mean, independence, gradient, and what the random state decides."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rqtransformer.dropout import drop_and_add


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 2.0**-16])
@pytest.mark.parametrize("shape", [(1000, 999), (1000001,), (500, 2, 1000)])
def test_share_mean_and_sum(probability, shape):
    torch.manual_seed(0)
    x, residual = torch.ones(shape), torch.full(shape, 3.0)
    out = drop_and_add(x, probability, residual) - residual
    count = x.numel()
    dropped = int((out == 0).sum())
    deviation = (count * probability * (1 - probability)) ** 0.5
    assert abs(dropped - count * probability) < 5 * deviation + count / 2**17
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - probability)), rtol=1e-4)


def test_neighbours_and_the_four_places_of_one_draw_are_independent():
    torch.manual_seed(1)
    dropped = drop_and_add(torch.ones(400_000, 4), 0.25) == 0
    assert (dropped.double().mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 400_000) ** 0.5
    correlation = torch.corrcoef(torch.cat([dropped[:-1], dropped[1:]], dim=1).T.double())
    assert (correlation - torch.eye(8)).abs().max() < 5 / 400_000**0.5


def test_gradient_is_that_of_the_mask_and_passes_around():
    x, residual = (torch.randn(64, 33, requires_grad=True) for _ in range(2))
    torch.manual_seed(2)
    out = drop_and_add(x, 0.3, residual)
    out.backward(weight := torch.randn_like(out))
    scale = ((out - residual) / x).detach()
    assert torch.equal(residual.grad, weight)
    assert torch.allclose(x.grad, weight * scale, rtol=1e-4, atol=1e-5)


def test_recomputing_draws_the_same():
    x = torch.randn(50, 70, requires_grad=True)
    torch.manual_seed(3)
    drop_and_add(x * 2, 0.4, x).sum().backward()
    expected, x.grad = x.grad, None
    torch.manual_seed(3)
    checkpoint(lambda value: drop_and_add(value * 2, 0.4, value), x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_number_types(dtype):
    x, residual = torch.ones(1000, dtype=dtype), torch.zeros(1000)
    assert drop_and_add(x, 0.5).dtype == dtype
    assert set(drop_and_add(x, 0.5, residual).tolist()) == {0.0, 2.0}


def test_probabilities_at_the_ends():
    x, residual = torch.ones(10), torch.full((10,), 2.0)
    state = torch.get_rng_state()
    assert drop_and_add(x, 0.0) is x
    assert torch.equal(drop_and_add(x, 0.0, residual), x + residual)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drop_and_add(x, 1.0, residual), residual)
    assert drop_and_add(torch.ones(0, 3), 0.5).shape == (0, 3)
