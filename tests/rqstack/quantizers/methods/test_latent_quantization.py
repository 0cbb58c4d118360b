"""Latent quantization in closed form."""

import pytest
import torch

from rqstack.quantizers import LatentOptions
from rqstack.quantizers.methods.latent_quantization import LatentQuantizer, nearest_scalars


def test_first_values():
    quantizer = LatentQuantizer(2, LatentOptions([5, 4]))
    torch.testing.assert_close(quantizer.values[0].data, torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5]))
    torch.testing.assert_close(quantizer.values[1].data, torch.tensor([-0.5, -0.25, 0.0, 0.25]))


def test_binary_search_finds_the_nearest_of_unsorted_values():
    values, x = torch.randn(7), torch.randn(500) * 2
    distance = (x[:, None] - values).abs()
    assert torch.equal(nearest_scalars(x, values), distance.argmin(1))
    assert nearest_scalars(torch.tensor([float("nan"), 1e30, -1e30]), values).max() < 7


def test_terms_and_their_gradients():
    quantizer = LatentQuantizer(2, LatentOptions([3, 4], commitment_weight=0.25, quantization_weight=0.5))
    z = torch.randn(9, 2, requires_grad=True)
    out = quantizer(z)
    error = (z - out.quantized).detach()
    torch.testing.assert_close(out.terms["commitment"], 0.25 * error.square().mean())
    torch.testing.assert_close(out.terms["quantization"], 0.5 * error.square().mean())
    gradient, *values = torch.autograd.grad(out.loss, [z, *quantizer.values], retain_graph=True)
    torch.testing.assert_close(gradient, 0.25 * 2 * error / 18)
    for scalar, level in enumerate([3, 4]):
        digit = out.codes[:, 0] % 3 if scalar == 0 else out.codes[:, 0] // 3
        expected = torch.zeros(level).index_add_(0, digit, -0.5 * 2 * error[:, scalar] / 18)
        torch.testing.assert_close(values[scalar], expected)
    upstream = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad(out.quantized, z, upstream)[0], upstream)


def test_values_move_to_the_data():
    quantizer = LatentQuantizer(1, LatentOptions([2], quantization_weight=1.0))
    z = torch.cat([torch.full((50, 1), -2.0), torch.full((50, 1), 3.0)])
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    torch.testing.assert_close(quantizer(z).quantized, z, atol=1e-3, rtol=0)


def test_in_place_optimizer_steps_once_per_update_on_the_mean_gradient():
    quantizer = LatentQuantizer(
        2, LatentOptions([3, 4]), in_place_optimizer=lambda values: torch.optim.SGD(values, lr=0.5)
    )
    plain = LatentQuantizer(2, LatentOptions([3, 4], quantization_weight=1.0))
    before = [values.clone() for values in quantizer.values]
    batches = torch.randn(2, 9, 2)
    for z in batches:
        out = quantizer(z)
        assert list(out.terms) == ["commitment"]
        (plain(z).terms["quantization"] / 2).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.values))
    quantizer.update_codebook()
    for old, new, values in zip(before, quantizer.values, plain.values):
        assert not new.requires_grad
        torch.testing.assert_close(new.data, old - 0.5 * values.grad)
    after = [values.clone() for values in quantizer.values]
    quantizer(batches[0])
    quantizer.discard_codebook_update()
    quantizer.eval()(batches[0])
    quantizer.update_codebook()
    assert all(torch.equal(a, b) for a, b in zip(after, quantizer.values))


def test_wrong_options():
    with pytest.raises(ValueError, match="every number of levels must be a whole number"):
        LatentQuantizer(2, LatentOptions([5, 1]))
    with pytest.raises(ValueError, match="commitment_weight must be a number of at least 0"):
        LatentQuantizer(2, LatentOptions([5, 5], commitment_weight=-1))
