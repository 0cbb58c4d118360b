"""Finite scalar perturbation: bins, values, moves, gradients, moments."""

import math

import pytest
import torch

from rqstack.quantizers import ScalarPerturbationOptions
from rqstack.quantizers.arithmetic.scalar_moments import MomentTargets, moment_loss, scalar_moments
from rqstack.quantizers.methods.scalar_perturbation import ACTIVATIONS, VARIANCES, ScalarPerturbationQuantizer

LEVELS = [8, 5, 5, 5]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_distribution_functions_with_inverses(name):
    forward, inverse = ACTIVATIONS[name]
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    p = forward(x)
    assert (p.diff() > 0).all()
    torch.testing.assert_close(p + p.flip(0), torch.ones_like(p))
    torch.testing.assert_close(inverse(p), x)
    uniform = torch.linspace(0, 1, 2_000_003, dtype=torch.float64)[1:-1]
    if VARIANCES[name] is not None:
        torch.testing.assert_close(inverse(uniform).var().item(), VARIANCES[name], atol=1e-3, rtol=0)


def test_values_are_bin_centres_of_unit_variance():
    quantizer = ScalarPerturbationQuantizer(1, ScalarPerturbationOptions([4])).eval()
    z = torch.linspace(-6, 6, 1001)[:, None]
    expected = (torch.tensor([0.125, 0.375, 0.625, 0.875]) - 0.5) * math.sqrt(12)
    torch.testing.assert_close(quantizer(z).quantized.unique(), expected)
    digits = ((z.tanh() + 1) / 2 * 4).floor().clamp(max=3).long()
    assert torch.equal(quantizer(z).codes, digits)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_code_decodes_to_itself(activation, invert):
    quantizer = ScalarPerturbationQuantizer(
        4, ScalarPerturbationOptions(LEVELS, activation=activation, invert=invert)
    ).eval()
    codes = torch.arange(1000)[:, None]
    vectors = quantizer.decode(codes)
    z = vectors if invert else ACTIVATIONS[activation][1](vectors / math.sqrt(12) + 0.5)
    out = quantizer(z)
    assert torch.equal(out.codes, codes)
    assert torch.equal(out.quantized, vectors)


def test_moves_are_at_most_half_a_bin_and_stay_inside():
    quantizer = ScalarPerturbationQuantizer(2, ScalarPerturbationOptions([4, 10], quantize_rate=0.25))
    z = torch.randn(20_000, 2)
    out = quantizer(z)
    act, got = (z.tanh() + 1) / 2, out.quantized / math.sqrt(12) + 0.5
    rounded = (out.quantized == quantizer.decode(out.codes)).float().mean(0)
    torch.testing.assert_close(rounded, torch.full((2,), 0.25), atol=0.02, rtol=0)
    assert ((got - act).abs() <= 0.5 / torch.tensor([4.0, 10.0]) + 1e-6).all()
    assert (got > -1e-6).all() and (got < 1 + 1e-6).all()
    assert torch.equal(out.codes, quantizer.eval()(z).codes)
    assert torch.equal(quantizer(z).quantized, quantizer.decode(out.codes))


def test_a_full_quantize_rate_obeys_the_law_in_train_mode_and_draws_nothing():
    quantizer = ScalarPerturbationQuantizer(4, ScalarPerturbationOptions(LEVELS, quantize_rate=1.0))
    state = torch.get_rng_state()
    out = quantizer(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(out.quantized, quantizer.decode(out.codes))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_is_that_of_the_activation_or_of_the_identity():
    z = torch.randn(50, 4, requires_grad=True)
    upstream = torch.randn(50, 4)
    (gradient,) = torch.autograd.grad(
        ScalarPerturbationQuantizer(4, ScalarPerturbationOptions(LEVELS))(z).quantized, z, upstream
    )
    torch.testing.assert_close(gradient, upstream * (1 - z.tanh() ** 2) / 2 * math.sqrt(12))
    (gradient,) = torch.autograd.grad(
        ScalarPerturbationQuantizer(4, ScalarPerturbationOptions(LEVELS, invert=True))(z).quantized, z, upstream
    )
    assert torch.equal(gradient, upstream)


def test_moments_equal_their_definitions_with_and_without_a_mask():
    x, mask = torch.randn(40, 3).exp(), torch.rand(40) < 0.5
    padded = torch.where(mask[:, None], x, float("nan"))
    kept = x[mask].double()
    unit = (kept - kept.mean(0)) / kept.std(0)
    expected = (kept.mean(0), kept.var(0), unit.pow(3).mean(0), unit.pow(4).mean(0) - 3)
    for got, value in zip(scalar_moments(padded, mask), expected, strict=True):
        torch.testing.assert_close(got.double(), value, atol=1e-4, rtol=1e-4)
    targets = MomentTargets((0.1, 1.0), (0.2, 2.0), (0.3, 3.0), (0.4, 4.0))
    loss = sum((k + 1) * (value - (k + 1) / 10).square().mean() for k, value in enumerate(expected))
    torch.testing.assert_close(moment_loss(scalar_moments(x[mask]), targets).double(), loss, rtol=1e-4, atol=1e-4)


def test_term_vanishes_for_the_right_spread_and_in_eval_mode():
    quantizer = ScalarPerturbationQuantizer(1, ScalarPerturbationOptions([16], activation="normal"))
    z = torch.randn(200_000, 1)
    assert quantizer(z).loss < 1e-4
    assert quantizer(z * 2).loss > 0.5
    assert quantizer.eval()(z * 2).loss == 0


def test_one_row_and_no_row_have_finite_gradients():
    quantizer = ScalarPerturbationQuantizer(
        2, ScalarPerturbationOptions([4, 4], skewness_weight=0.1, kurtosis_weight=0.1)
    )
    for mask in (torch.tensor([True, False]), torch.tensor([False, False])):
        z = torch.randn(2, 2, requires_grad=True)
        quantizer(z, mask).loss.backward()
        assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [3, 1]}, "every number of levels must be a whole number of at least 2, got 1"),
        ({"levels": [3, 3], "activation": "relu"}, "activation 'relu' is not one of tanh, sigmoid"),
        (
            {"levels": [3, 3], "quantize_rate": 1.5},
            "quantize_rate must be a number of at least 0 and at most 1, got 1.5",
        ),
        ({"levels": [3, 3], "mean_weight": -0.1}, "mean_weight must be a number of at least 0, got -0.1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScalarPerturbationQuantizer(6, ScalarPerturbationOptions(**options))
