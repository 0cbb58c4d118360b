"""Lookup-free quantization: bits, brute-force entropies, gradients, memory."""

import math

import pytest
import torch

from rqstack.quantizers import LookupFreeOptions
from rqstack.quantizers.arithmetic import bit_entropy
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer
from tests.rqstack.quantizers.quantizer_methods import made


def brute_force(quantizer, z, mask=None):
    """(mean entropy, entropy of the mean) from the N x 2^k table of one codebook."""
    book = quantizer.codebook(0)
    probs = (2 * quantizer.options.inv_temperature * z @ book.T).softmax(1)
    probs = probs if mask is None else probs[mask]
    mean = probs.mean(0)
    return torch.special.entr(probs).sum(1).mean(), torch.special.entr(mean).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_entropies_equal_brute_force(monkeypatch, bits, temperature, masked, chunk):
    monkeypatch.setattr(bit_entropy, "rows_per_chunk", lambda size, device: chunk)
    quantizer = LookupFreeQuantizer(
        bits,
        2**bits,
        LookupFreeOptions(entropy_weight=0.3, diversity_weight=0.7, inv_temperature=temperature, scale=0.8),
    )
    z = (torch.randn(40, bits) * 0.3).requires_grad_()
    mask = torch.rand(40) < 0.5 if masked else None
    terms = quantizer(z, mask).terms
    each, total = brute_force(quantizer, z, mask)
    torch.testing.assert_close(terms["entropy"], 0.3 * each)
    torch.testing.assert_close(terms["diversity"], -0.3 * 0.7 * total)
    for got, expected in ((terms["entropy"], 0.3 * each), (terms["diversity"], -0.21 * total)):
        (a,) = torch.autograd.grad(got, z, retain_graph=True)
        (b,) = torch.autograd.grad(expected, z, retain_graph=True)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_groups_of_bits_bound_the_diversity_from_above():
    z = torch.randn(30, 6) * 0.2
    quantizers = [
        LookupFreeQuantizer(6, 64, LookupFreeOptions(inv_temperature=2.0, joint_bits=bits)) for bits in (1, 2, 3, 6)
    ]
    entropies = [-q(z).terms["diversity"] / 0.1 for q in quantizers]
    exact = brute_force(quantizers[-1], z)[1]
    torch.testing.assert_close(entropies[-1], exact)
    assert all(entropy >= exact - 1e-5 for entropy in entropies)
    pairs = 0
    for first in (0, 2, 4):
        pair = LookupFreeQuantizer(2, 4, LookupFreeOptions(inv_temperature=2.0))
        pairs = pairs + brute_force(pair, z[:, first : first + 2])[1]
    torch.testing.assert_close(entropies[1], pairs)


def test_bits_and_codes():
    quantizer = LookupFreeQuantizer(3, 8)
    z = torch.tensor([[-1.0, -1.0, 2.0], [1.0, 0.0, 0.0], [0.5, 0.1, 3.0]])
    out = quantizer(z)
    assert out.codes[:, 0].tolist() == [1, 4, 7]
    assert torch.equal(out.quantized, torch.tensor([[-1.0, -1, 1], [1, -1, -1], [1, 1, 1]]))


def test_no_code_of_two_to_the_eighteen_is_lost_in_bf16():
    quantizer = LookupFreeQuantizer(18, 2**18, LookupFreeOptions(entropy_weight=0.0)).eval()
    codes = torch.arange(2**18)[:, None]
    vectors = quantizer.decode(codes)
    for dtype in (torch.bfloat16, torch.float16):
        out = quantizer(vectors.to(dtype))
        assert torch.equal(out.codes, codes)
        assert torch.equal(out.quantized.float(), vectors)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(quantizer(vectors.to(dtype)).codes, codes)


def test_spherical_codes_have_unit_length():
    quantizer = LookupFreeQuantizer(5, 32, LookupFreeOptions(spherical=True, commitment_weight=1.0, entropy_weight=0.0))
    z = torch.randn(20, 5, requires_grad=True)
    out = quantizer(z)
    torch.testing.assert_close(out.quantized.norm(dim=1), torch.ones(20))
    unit = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(out.loss, (unit - unit.sign() / math.sqrt(5)).square().mean())


def test_commitment_gradient_and_straight_through():
    quantizer = LookupFreeQuantizer(4, 16, LookupFreeOptions(commitment_weight=0.5, entropy_weight=0.0))
    z = torch.randn(7, 4, requires_grad=True)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad(out.loss, z, retain_graph=True)
    torch.testing.assert_close(gradient, 0.5 * 2 * (z - z.sign()).detach() / z.numel())
    upstream = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad(out.quantized, z, upstream)[0], upstream)


def test_saturated_bits_have_finite_gradients():
    quantizer = LookupFreeQuantizer(16, 65536)
    z = (torch.randn(8, 16) * 100).requires_grad_()
    out = quantizer(z)
    out.loss.backward()
    assert z.grad.isfinite().all()
    torch.testing.assert_close(out.terms["diversity"], torch.tensor(-0.1 * math.log(8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_size": 12}, "power of two"),
        ({"codebook_size": 1}, "power of two"),
        ({"codebook_size": 16, "entropy_weight": -1.0}, "entropy_weight must be a number of at least 0"),
        ({"codebook_size": 16, "inv_temperature": 0.0}, "inv_temperature must be a number above 0"),
        ({"codebook_size": 16, "joint_bits": 0}, "joint_bits must be a whole number of at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        made(LookupFreeQuantizer, LookupFreeOptions, 4, **options)
