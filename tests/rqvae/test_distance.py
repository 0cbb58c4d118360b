"""Nearest and drawn codes: chunked search against the definition."""

import pytest
import torch

from rqvae.quantizers import distance
from rqvae.quantizers.distance import nearest_codes, sampled_codes, soft_code_probs


def pairwise(x_NE, weight_KE):
    return (x_NE[:, None].double() - weight_KE[None].double()).square().sum(-1)


@pytest.mark.parametrize("chunk_rows", [1, 7, 100])
def test_nearest_is_the_argmin_for_any_chunk(monkeypatch, chunk_rows):
    monkeypatch.setattr(distance, "rows_per_chunk", lambda num_codes, device: chunk_rows)
    x, weight = torch.randn(50, 6), torch.randn(33, 6)
    codes = nearest_codes(x, weight)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, pairwise(x, weight).argmin(1))


def test_ties_take_the_lowest_index_and_no_rows_are_fine():
    weight = torch.randn(5, 4)[[0, 1, 1, 0, 2]]
    assert nearest_codes(weight, weight).tolist() == [0, 1, 1, 0, 4]
    assert nearest_codes(torch.empty(0, 4), weight).shape == (0,)


def test_half_precision_rows_search_in_fp32():
    x, weight = torch.randn(64, 8), torch.randn(300, 8)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(nearest_codes(x.to(dtype), weight), nearest_codes(x.to(dtype).float(), weight))


def test_chunk_follows_the_byte_budget():
    cpu = torch.device("cpu")
    assert distance.rows_per_chunk(16384, cpu) * 16384 * 4 == distance.CPU_CHUNK_BYTES
    assert distance.rows_per_chunk(2**30, cpu) == distance.MIN_CHUNK_ROWS


def test_soft_probabilities_are_the_softmax_of_minus_squared_distances():
    x, weight = torch.randn(20, 5), torch.randn(12, 5)
    expected = (-pairwise(x, weight) / 0.7).softmax(1)
    torch.testing.assert_close(soft_code_probs(x, weight, 0.7).double(), expected, atol=1e-6, rtol=0)


def test_draws_follow_the_soft_probabilities():
    x, weight = torch.randn(1, 3), torch.randn(6, 3)
    draws = sampled_codes(x.expand(40_000, 3), weight, 1.5, torch.Generator().manual_seed(1))
    frequency = torch.bincount(draws, minlength=6) / 40_000
    torch.testing.assert_close(frequency, soft_code_probs(x, weight, 1.5)[0], atol=0.01, rtol=0)
    cold = sampled_codes(torch.randn(50, 3), weight, 1e-6, torch.Generator().manual_seed(1))
    assert cold.shape == (50,)


def test_draws_repeat_with_the_generator():
    x, weight = torch.randn(30, 3), torch.randn(64, 3)
    first, again, other = (sampled_codes(x, weight, 1.0, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("temp", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temp):
    for function in (soft_code_probs, sampled_codes):
        with pytest.raises(ValueError, match="temp must be positive"):
            function(torch.randn(2, 3), torch.randn(4, 3), temp)


def test_the_search_never_holds_all_distances(monkeypatch):
    """The largest matrix product result inside a search stays within one chunk."""
    sizes = []
    addmm = torch.addmm

    def recording(*args, **kwargs):
        sizes.append(kwargs["out"].numel())
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", recording)
    monkeypatch.setattr(distance, "CPU_CHUNK_BYTES", 4 * 256 * 32)
    nearest_codes(torch.randn(1000, 4), torch.randn(256, 4))
    assert max(sizes) == 256 * 32
    assert sum(sizes) == 1000 * 256


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_tf32_products_are_off_inside_a_search_and_restored(setting):
    """The switch is a setting of torch, there without a GPU too."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        with distance.full_precision_matmul(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == setting
        with distance.full_precision_matmul(torch.device("cpu")):
            assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = before
