"""Nearest and drawn codes: chunked search against the definition."""

import pytest
import torch

from rqstack.quantizers.arithmetic import nearest
from rqstack.quantizers.arithmetic.nearest import _draw, nearest_codes, sampled_codes, soft_code_probs


def pairwise(x_NE, weight_KE):
    return (x_NE[:, None].double() - weight_KE[None].double()).square().sum(-1)


@pytest.mark.parametrize("chunk_rows", [1, 7, 100])
def test_nearest_is_the_argmin_for_any_chunk(monkeypatch, chunk_rows):
    monkeypatch.setattr(nearest, "rows_per_chunk", lambda num_codes, device: chunk_rows)
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
    assert nearest.rows_per_chunk(16384, cpu) * 16384 * 4 == nearest.CPU_CHUNK_BYTES
    assert nearest.rows_per_chunk(2**30, cpu) == nearest.MIN_CHUNK_ROWS


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
    monkeypatch.setattr(nearest, "CPU_CHUNK_BYTES", 4 * 256 * 32)
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
        with nearest.full_precision_matmul(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == setting
        with nearest.full_precision_matmul(torch.device("cpu")):
            assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("num_codes", "tile"), [(4096, 4096), (4097, 2176), (8196, 2816), (65536, 4096), (100, 100)])
def test_codes_are_spread_evenly_over_tiles_within_the_budget(num_codes, tile):
    rows, codes = nearest.tile_shape(num_codes, torch.device("cpu"))
    assert codes == tile
    assert rows * codes * 4 <= nearest.CPU_CHUNK_BYTES


@pytest.mark.parametrize("num_codes", [511, 512, 600, 1000, 2176])
def test_the_two_step_minimum_is_the_minimum(num_codes):
    """With many ties: whole numbers, and equal entries on both sides of a block's edge."""
    score = torch.randint(0, 40, (200, num_codes)).float()
    score[0] = 7.0
    score[1] = float("inf")
    score[2, 127:129] = -1.0
    value, index = nearest._lowest(score)
    assert torch.equal(value, score.amin(1))
    assert torch.equal(index, score.argmin(1))
    assert index[:3].tolist() == [0, 0, 127]


def test_equal_codes_in_different_tiles_take_the_lowest_index(monkeypatch):
    monkeypatch.setattr(nearest, "CPU_TILE_CODES", 256)
    weight = torch.randn(200, 4).repeat(5, 1)
    assert nearest.tile_shape(1000, torch.device("cpu"))[1] == 256
    assert torch.equal(nearest_codes(weight, weight), torch.arange(200).repeat(5))


def test_draws_over_several_tiles_follow_the_soft_probabilities(monkeypatch):
    monkeypatch.setattr(nearest, "CPU_TILE_CODES", 128)
    x, weight = torch.randn(1, 3), torch.randn(300, 3)
    draws = sampled_codes(x.expand(40_000, 3), weight, 5.0, torch.Generator().manual_seed(1))
    frequency = torch.bincount(draws, minlength=300) / 40_000
    torch.testing.assert_close(frequency, soft_code_probs(x, weight, 5.0)[0], atol=0.005, rtol=0)


def test_rows_that_are_not_finite_get_a_valid_code_and_disturb_no_other():
    x, weight = torch.randn(20, 4), torch.randn(5000, 4)
    expected = nearest_codes(x, weight)
    x[3], x[7] = float("nan"), float("inf")
    codes = nearest_codes(x, weight)
    assert 0 <= codes.min() and codes.max() < 5000
    kept = [row for row in range(20) if row not in (3, 7)]
    assert torch.equal(codes[kept], expected[kept])


@pytest.mark.parametrize("num_codes", [600, 640])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-24])
def test_a_draw_never_finds_what_was_cut_off(num_codes, uniform):
    distance = torch.full((3, num_codes), 44.0)  # exp(-88) is not a normal number
    distance[0], distance[1, 300], distance[2, 555] = 1e30, 0.0, 0.0
    distance[0, 7] = 0.0
    log_mass, index = _draw(distance, 0.5, torch.full((3,), uniform))
    assert index.tolist() == [7, 300, 555]
    assert log_mass.tolist() == [0.0, 0.0, 0.0]


def test_a_draw_counts_the_smallest_normal_weights():
    distance = torch.full((1, 640), 1e6)
    distance[0, [5, 400]] = torch.tensor([43.4, 0.0])  # weights exp(-86.8) and 1
    assert _draw(distance, 0.5, torch.zeros(1))[1].tolist() == [5]
