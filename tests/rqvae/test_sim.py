"""SimVQ: terms, gradients, and a codebook that moves as a whole."""

import pytest
import torch

from rqvae.quantizers.sim import SimQuantizer


def test_terms_and_their_gradients():
    quantizer = SimQuantizer(4, 10, codebook_weight=0.5, commitment_weight=0.125)
    z = torch.randn(20, 4, requires_grad=True)
    out = quantizer(z)
    book = quantizer.frozen @ quantizer.map.weight.T
    codes = torch.cdist(z, book).argmin(1)
    assert torch.equal(out.codes[:, 0], codes)
    error = (z - book[codes]).detach()
    torch.testing.assert_close(out.terms["codebook"], 0.5 * error.square().mean())
    torch.testing.assert_close(out.terms["commitment"], 0.125 * error.square().mean())
    gradient, weight = torch.autograd.grad(out.loss, [z, quantizer.map.weight], retain_graph=True)
    torch.testing.assert_close(gradient, 0.125 * 2 * error / 80)
    torch.testing.assert_close(weight, -0.5 * 2 / 80 * error.T @ quantizer.frozen[codes])
    upstream = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad(out.quantized, z, upstream)[0], upstream)


def test_unused_codes_move_and_the_frozen_ones_do_not():
    quantizer = SimQuantizer(4, 64)
    assert "frozen" not in dict(quantizer.named_parameters())
    before, frozen = quantizer.codebook(0).detach().clone(), quantizer.frozen.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    quantizer(torch.randn(2, 4)).loss.backward()
    optimizer.step()
    assert ((quantizer.codebook(0) - before).abs().sum(1) > 0).all()
    assert torch.equal(quantizer.frozen, frozen)
    assert quantizer.half().frozen.dtype == torch.float32


def test_wrong_options():
    with pytest.raises(ValueError, match="dim 6 is not a multiple of num_codebooks 4"):
        SimQuantizer(6, 16, num_codebooks=4)
    with pytest.raises(ValueError, match="codebook size must be at least 1"):
        SimQuantizer(6, 0)
    with pytest.raises(ValueError, match="weights must not be negative"):
        SimQuantizer(6, 16, commitment_weight=-1.0)
