"""The binary mapper: draws, one-hot gradients, divergence."""

import math

import pytest
import torch

from rqstack.quantizers import BinaryOptions
from rqstack.quantizers.methods.binary_mapper import BinaryMapper


def code_probs(z):
    """(N, 2^C) by brute force; bit i of a code has probability sigmoid(z_i)."""
    bits = z.shape[1]
    probs = []
    for code in range(2**bits):
        factors = [z[:, i].sigmoid() if code >> i & 1 else 1 - z[:, i].sigmoid() for i in range(bits)]
        probs.append(torch.stack(factors).prod(0))
    return torch.stack(probs, 1)


def test_training_draws_codes_with_their_probability():
    mapper = BinaryMapper(3, 8)
    z = torch.tensor([[0.5, -1.0, 0.2]])
    codes = mapper(z.expand(100_000, 3)).codes[:, 0]
    torch.testing.assert_close(codes.bincount(minlength=8) / 100_000, code_probs(z)[0], atol=6e-3, rtol=0)
    assert mapper.eval()(z).codes.item() == 0b101


def test_one_hot_and_its_gradient():
    mapper = BinaryMapper(3, 8).eval()
    z = torch.randn(5, 3, requires_grad=True)
    hot = mapper.one_hot(z)
    assert hot.shape == (5, 1, 8)
    assert torch.equal(hot.argmax(-1), mapper(z).codes)
    assert torch.equal(hot.sum(-1), torch.ones(5, 1))
    upstream = torch.randn(5, 8)
    (gradient,) = torch.autograd.grad(hot, z, upstream[:, None])
    (expected,) = torch.autograd.grad(code_probs(z), z, upstream)
    torch.testing.assert_close(gradient, expected)


def test_divergence_from_uniform_codes_beyond_the_free_nats():
    z = torch.randn(6, 3, requires_grad=True)
    probs = code_probs(z)
    divergence = 3 * math.log(2) - torch.special.entr(probs).sum(1)
    for free in (0.0, 0.3):
        loss = BinaryMapper(3, 8, BinaryOptions(kl_weight=0.5, free_nats=free))(z).loss
        expected = 0.5 * (divergence - free).relu().mean()
        torch.testing.assert_close(loss, expected)
        a, b = (torch.autograd.grad(value, z, retain_graph=True)[0] for value in (loss, expected))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_gradient_of_the_mean_bit():
    mapper = BinaryMapper(3, 8).eval()
    z = torch.randn(6, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(mapper(z).quantized.sum(), z)
    torch.testing.assert_close(gradient, 2 * (z.sigmoid() * (1 - z.sigmoid())).detach())


def test_wrong_options():
    with pytest.raises(ValueError, match="power of two"):
        BinaryMapper(3, 9)
    with pytest.raises(ValueError, match="kl_weight must be a number of at least 0"):
        BinaryMapper(3, 8, BinaryOptions(kl_weight=-1.0))
