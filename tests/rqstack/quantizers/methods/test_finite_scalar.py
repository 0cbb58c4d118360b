"""Finite scalar quantization in closed form."""

import itertools
import math

import pytest
import torch

from rqstack.quantizers import FiniteScalarOptions, LatentOptions, ScalarPerturbationOptions
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.methods.latent_quantization import LatentQuantizer
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationQuantizer
from tests.rqstack.quantizers.quantizer_methods import made


@pytest.mark.parametrize("level", [3, 4, 5, 8, 9])
def test_values_are_k_over_half_the_levels(level):
    quantizer = FiniteScalarQuantizer(1, FiniteScalarOptions([level])).eval()
    z = torch.linspace(-6, 6, 2001)[:, None]
    half = level // 2
    expected = torch.tensor([k / half for k in range(-half, (level - 1) // 2 + 1)])
    assert torch.equal(quantizer(z).quantized.unique(), expected)
    assert torch.equal(quantizer.codebook(0)[:, 0], expected)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 9])
def test_symmetric_values_are_even_steps_from_minus_one_to_one(level):
    quantizer = FiniteScalarQuantizer(1, FiniteScalarOptions([level], preserve_symmetry=True)).eval()
    z = torch.linspace(-6, 6, 2001)[:, None]
    values = quantizer(z).quantized.unique()
    torch.testing.assert_close(values, torch.linspace(-1, 1, level))
    torch.testing.assert_close(values, -values.flip(0))
    expected = (z.tanh() + 1) * (level - 1) / 2
    digits = quantizer(z).codes
    assert ((digits - expected).abs() <= 0.5 + 1e-5).all()


def test_the_first_level_varies_fastest():
    levels = [3, 5, 4]
    quantizer = FiniteScalarQuantizer(3, FiniteScalarOptions(levels))
    digits = [tuple(reversed(d)) for d in itertools.product(*(range(level) for level in reversed(levels)))]
    expected = torch.tensor([[(k - n // 2) / (n // 2) for k, n in zip(d, levels)] for d in digits])
    assert torch.equal(quantizer.codebook(0), expected)
    assert quantizer.num_codes == (60,)


def test_every_code_can_be_reached_and_decodes_to_itself():
    quantizer = FiniteScalarQuantizer(4, FiniteScalarOptions([8, 5, 5, 5])).eval()
    codes = torch.arange(1000)[:, None]
    vectors = quantizer.decode(codes)
    clamped = FiniteScalarQuantizer(4, FiniteScalarOptions([8, 5, 5, 5]), bound="clamp").eval()
    assert torch.equal(clamped(vectors).codes, codes)
    assert torch.equal(clamped(vectors.bfloat16()).codes, codes)
    assert torch.equal(clamped(vectors.bfloat16()).quantized.float(), vectors)
    z = torch.randn(200_000, 4) * 2
    assert len(quantizer(z).codes.unique()) == 1000
    assert len(quantizer(z.bfloat16()).codes.unique()) == 1000


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_code_of_a_thousand_is_lost_in_half_precision(dtype, symmetric):
    """For every code the middle of its cell before the bound, in half precision, has that code; autocast too."""
    quantizer = FiniteScalarQuantizer(4, FiniteScalarOptions([8, 5, 5, 5], preserve_symmetry=symmetric)).eval()
    codes = torch.arange(1000)[:, None]
    digits = torch.stack([codes[:, 0] // stride % level for stride, level in zip((1, 8, 40, 200), (8, 5, 5, 5))], 1)
    top = torch.tensor([7, 4, 4, 4])
    if symmetric:
        z = (2 * digits / top - 1).clamp(-0.999, 0.999).atanh()
    else:
        half, offset = top * 1.001 / 2, torch.tensor([0.5, 0, 0, 0])
        z = ((digits - (top + 1) // 2 + offset) / half).clamp(-0.999, 0.999).atanh() - (offset / half).atanh()
    z = z.to(dtype)
    for out in (quantizer(z), quantizer.to(dtype)(z)):
        assert torch.equal(out.codes, codes)
        assert torch.equal(out.quantized, quantizer.decode(codes).to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer(z).codes, codes)


@pytest.mark.parametrize(
    "quantizer",
    [
        FiniteScalarQuantizer(2, FiniteScalarOptions([5, 4])),
        FiniteScalarQuantizer(2, FiniteScalarOptions([5, 4], preserve_symmetry=True)),
        FiniteScalarQuantizer(2, FiniteScalarOptions([5, 4]), bound="clamp"),
        ScalarPerturbationQuantizer(2, ScalarPerturbationOptions([5, 4], quantize_rate=1.0)),
        LookupFreeQuantizer(2, 4),
        LatentQuantizer(2, LatentOptions([5, 4])),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_what_is_no_number_gets_a_code_and_harms_no_other_vector(quantizer):
    z = torch.randn(6, 2)
    expected = quantizer(z)
    spoilt = z.clone()
    spoilt[2, 0], spoilt[3, 1], spoilt[4] = float("nan"), float("inf"), -float("inf")
    out = quantizer(spoilt)
    assert (out.codes >= 0).all()
    assert (out.codes < quantizer.num_codes[0]).all()
    assert torch.equal(out.quantized, quantizer.decode(out.codes))
    kept = [0, 1, 5]
    assert torch.equal(out.codes[kept], expected.codes[kept])
    assert torch.equal(out.quantized[kept], expected.quantized[kept])


@pytest.mark.parametrize("level", [4, 5])
def test_gradient_is_that_of_the_bound(level):
    z = torch.randn(50, 1, dtype=torch.float64).float().requires_grad_()
    quantizer = FiniteScalarQuantizer(1, FiniteScalarOptions([level]))
    (gradient,) = torch.autograd.grad(quantizer(z).quantized.sum(), z)
    half, offset = (level - 1) * 1.001 / 2, 0.5 * (level % 2 == 0)
    expected = half / (level // 2) * (1 - (z + math.atanh(offset / half)).tanh() ** 2)
    torch.testing.assert_close(gradient, expected)
    assert quantizer(z).loss == 0


def test_dithered_rounding_is_right_on_average():
    """With noise on every scalar the mean value is the bounded scalar; without train mode there is no noise."""
    quantizer = FiniteScalarQuantizer(1, FiniteScalarOptions([9], noise_dropout=1.0))
    z = torch.full((200_000, 1), 0.3)
    bounded = quantizer.bound(z[:1])
    torch.testing.assert_close(quantizer(z).quantized.mean(), bounded[0, 0], atol=2e-3, rtol=0)
    assert len(quantizer.eval()(z).codes.unique()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": []}, "levels must be one or more whole numbers of at least 2"),
        ({"levels": [8, 1]}, "every number of levels must be a whole number of at least 2, got 1"),
        ({"levels": [8, 2]}, "choose at least 3, or preserve_symmetry"),
        ({"levels": [3] * 63}, "fit 63 bits"),
        ({"levels": [3, 3], "bound": "sigmoid"}, "bound 'sigmoid' is not one of tanh, clamp"),
        (
            {"levels": [3, 3], "noise_dropout": 1.5},
            "noise_dropout must be a number of at least 0 and at most 1, got 1.5",
        ),
        ({"levels": [3, 3], "project": False}, "dim 6 needs a projection"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        made(FiniteScalarQuantizer, FiniteScalarOptions, 6, **options)
