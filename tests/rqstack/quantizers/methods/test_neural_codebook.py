"""Implicit neural codebooks: the transform, the search over what it gives, its losses, and what it is for."""

import pytest
import torch

from rqstack.quantizers import ResidualVectorOptions, ResidualVectorQuantizer, VectorLosses
from rqstack.quantizers.arithmetic.beam_search import beam_search
from rqstack.quantizers.methods import neural_codebook
from rqstack.quantizers.methods.neural_codebook import (
    NeuralCodebook,
    NeuralLevel,
    NeuralResidualOptions,
    NeuralResidualQuantizer,
)

DIM = 6


def wild(module):
    """Weights that make a transform do something."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def quantizer(**settings):
    torch.manual_seed(0)
    options = NeuralResidualOptions(**{"hidden": 5, "depth": 2, "kmeans_init": False, **settings})
    model = NeuralResidualQuantizer(DIM, 10, 3, options)
    for level in model.levels:
        level.codebooks[0].assign(torch.randn(10, DIM), torch.ones(10))
    wild(model.transforms)
    return model


def test_a_transform_is_a_network_over_partial_sum_and_code():
    book = wild(NeuralCodebook(DIM, hidden=5, depth=2))
    base, partial = torch.randn(4, DIM), torch.randn(4, DIM)
    x = base + book.proj_in(torch.cat([partial, base], -1))
    for layer in book.layers:
        x = x + layer(x)
    torch.testing.assert_close(book(base, partial), x)
    everything = book(base, partial[:, None])
    assert everything.shape == (4, 4, DIM)
    torch.testing.assert_close(everything[2, 3], book(base[3], partial[2]))


def test_training_starts_with_plain_residual_quantization():
    torch.manual_seed(0)
    neural = NeuralResidualQuantizer(DIM, 10, 3).eval()
    plain = ResidualVectorQuantizer(DIM, 10, 3, ResidualVectorOptions(codebook="learned")).eval()
    plain.load_state_dict(neural.state_dict(), strict=False)
    z = torch.randn(30, DIM)
    out, expected = neural(z), plain(z)
    assert torch.equal(out.codes, expected.codes)
    torch.testing.assert_close(out.quantized, expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)


def brute_force(model, x_E, width):
    beams = [([], torch.zeros(DIM))]
    for depth in range(3):
        found = []
        for codes, total in beams:
            book = model.codebook(depth)
            vectors = model.transforms[depth - 1](book, total) if depth else book
            errors = (x_E - total - vectors).square().sum(1)
            found += [(errors[k].item(), [*codes, k], total + vectors[k]) for k in range(10)]
        beams = [(codes, total) for _, codes, total in sorted(found, key=lambda entry: entry[0])[:width]]
    return beams[0][0]


@pytest.mark.parametrize("width", [1, 3])
@torch.no_grad()
def test_codes_are_those_of_brute_force(width):
    model = quantizer(beam_width=width)
    z = torch.randn(12, DIM)
    codes = model(z).codes
    assert codes.tolist() == [brute_force(model, row, width) for row in z]


def test_blocks_of_rows_and_codes_change_nothing(monkeypatch):
    level = NeuralLevel(wild(NeuralCodebook(DIM)), torch.randn(11, DIM))
    residual, total = torch.randn(9, DIM), torch.randn(9, DIM)
    whole = level.distances(residual, total)
    expected = (residual[:, None] - level.codebook(level.base_KE, total[:, None])).square().sum(-1)
    torch.testing.assert_close(whole + residual.square().sum(-1, keepdim=True), expected)
    for pairs in (1, 7, 25):
        monkeypatch.setattr(neural_codebook, "rows_per_chunk", lambda *_, pairs=pairs: pairs)
        torch.testing.assert_close(level.distances(residual, total), whole)


def test_the_loss_compares_the_input_with_every_partial_sum():
    losses = VectorLosses(commitment=0.25, codebook=2.0)
    model = quantizer(losses=losses, loss_weights=[1.0, 0.5, 3.0])
    z = torch.randn(8, DIM, requires_grad=True)
    out = model(z)
    errors, total = [], None
    for depth in range(3):
        vectors = model.codebook(depth)[out.codes[:, depth]]
        total = vectors if depth == 0 else total + model.transforms[depth - 1](vectors, total)
        errors.append((z - total).square().mean())
    mean = (errors[0] + 0.5 * errors[1] + 3.0 * errors[2]) / 3
    torch.testing.assert_close(out.terms["commitment"], 0.25 * mean)
    torch.testing.assert_close(out.terms["codebook"], 2.0 * mean)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(out.loss, [z, *parameters], retain_graph=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(0.25 * mean, z, retain_graph=True)[0])
    for name, one, other in zip(names, found[1:], torch.autograd.grad(2.0 * mean, parameters), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_training_beats_plain_residual_quantization():
    torch.manual_seed(0)
    x = torch.randn(400, 8) @ torch.randn(8, 8)
    errors = {}
    kinds = {
        NeuralResidualQuantizer: NeuralResidualOptions(kmeans_init=True),
        ResidualVectorQuantizer: ResidualVectorOptions(kmeans_init=True, codebook="learned"),
    }
    for kind, options in kinds.items():
        torch.manual_seed(0)
        model = kind(8, 16, 3, options)
        model(x)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            model(x).loss.backward()
            optimizer.step()
        errors[kind] = (model.eval()(x).quantized - x).square().mean().item()
    assert errors[NeuralResidualQuantizer] < 0.9 * errors[ResidualVectorQuantizer]


def test_soft_codes_are_over_the_vectors_that_the_codes_before_allow():
    model = quantizer().eval()
    z = torch.randn(5, DIM)
    probs, codes = model.soft_codes(z, temp=0.4)
    total = model.decode(codes[:, :2])
    vectors = model.transforms[1](model.codebook(2), total[:, None])
    expected = (-(z[:, None] - total[:, None] - vectors).square().sum(-1) / 0.4).softmax(-1)
    torch.testing.assert_close(probs[:, 2], expected)


def test_search_draws_codes_of_any_level():
    level = NeuralLevel(wild(NeuralCodebook(DIM)), torch.randn(3, DIM), temp=2.0)
    x = torch.randn(1, DIM).expand(20_000, DIM)
    torch.manual_seed(0)
    codes = beam_search(x, [level], 2)
    exact = NeuralLevel(level.codebook, level.base_KE).distances(x[:1], torch.zeros(1, DIM))
    frequencies = codes[:, 0].bincount(minlength=3) / len(x)
    torch.testing.assert_close(frequencies, (-exact[0] / 2.0).softmax(0).detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"estimator": "gumbel"},
        {"losses": VectorLosses(diversity=1.0)},
    ],
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="an implicit neural codebook"):
        quantizer(**wrong)
