"""SimVQ: terms, gradients, and a codebook that moves as a whole."""

import pytest
import torch
from torch import nn

from rqstack.quantizers import SimOptions
from rqstack.quantizers.arithmetic.gradient import rotation_trick
from rqstack.quantizers.methods.simvq import SimQuantizer
from rqstack.quantizers.wrappers.layout import InLayout


def test_terms_and_their_gradients():
    quantizer = SimQuantizer(4, 10, SimOptions(codebook_weight=0.5, commitment_weight=0.125))
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


def test_a_smaller_frozen_codebook():
    quantizer = SimQuantizer(8, 32, SimOptions(codebook_dim=3), num_codebooks=2)
    assert quantizer.frozen.shape == (32, 3) and quantizer.map.weight.shape == (4, 3)
    assert abs(SimQuantizer(8, 999, SimOptions(codebook_dim=100)).frozen.std() - 0.1) < 0.01
    z = torch.randn(6, 5, 8)
    out = quantizer(z)
    book = quantizer.frozen @ quantizer.map.weight.T
    torch.testing.assert_close(out.quantized.view(6, 5, 2, 4), book[out.codes])
    assert torch.equal(quantizer.decode(out.codes), out.quantized)


def test_another_transform_learns_and_stays_fp32():
    transform = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    quantizer = SimQuantizer(4, 64, transform=transform)
    z = torch.randn(30, 4)
    out = quantizer(z)
    assert torch.equal(out.codes[:, 0], torch.cdist(z, transform(quantizer.frozen)).argmin(1))
    out.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in transform.parameters())
    quantizer.half()
    assert quantizer.codebook(0).dtype == torch.float32
    assert torch.equal(quantizer.codebook(0), transform.float()(quantizer.frozen))


def test_estimators_change_the_gradient_and_not_the_value():
    plain, rotating = SimQuantizer(4, 16), SimQuantizer(4, 16, SimOptions(estimator="rotation"))
    rotating.load_state_dict(plain.state_dict())
    z, upstream = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4)
    out, turned = plain(z), rotating(z)
    assert torch.equal(out.quantized, turned.quantized) and torch.equal(out.codes, turned.codes)
    found = torch.autograd.grad(turned.quantized, z, upstream)[0]
    expected = torch.autograd.grad(rotation_trick(z, plain.codebook(0)[out.codes[:, 0]]), z, upstream)[0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, upstream)


def test_images_channels_first():
    quantizer = InLayout(SimQuantizer(8, 32, num_codebooks=2), 8, "channels_first")
    out = quantizer(torch.randn(2, 8, 5, 6))
    assert out.quantized.shape == (2, 8, 5, 6) and out.codes.shape == (2, 5, 6, 2)
    assert torch.equal(quantizer.decode(out.codes), out.quantized)


def test_wrong_options():
    with pytest.raises(ValueError, match="dim 6 is not a multiple of num_codebooks 4"):
        SimQuantizer(6, 16, num_codebooks=4)
    with pytest.raises(ValueError, match="codebook_size must be a whole number of at least 1, got 0"):
        SimQuantizer(6, 0)
    with pytest.raises(ValueError, match="commitment_weight must be a number of at least 0"):
        SimQuantizer(6, 16, SimOptions(commitment_weight=-1.0))
    with pytest.raises(ValueError, match="estimator 'none' is not one of straight_through"):
        SimQuantizer(6, 16, SimOptions(estimator="none"))
    with pytest.raises(ValueError, match=r"the codebook transform gives \(16, 5\) instead of \(16, 6\)"):
        SimQuantizer(6, 16, transform=nn.Linear(6, 5))(torch.randn(3, 6))
