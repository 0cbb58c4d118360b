"""Filters against brute force, the draw against the distribution it should follow."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from rqstack.counter_noise import uniform_noise
from rqtransformer.decoding.logits import (
    draw,
    guide,
    invert_cdf,
    sampling_probs,
)
from rqtransformer.draw_settings import DrawSettings, filter_top_k, filter_top_p

INF = float("inf")
PINNED = [0.9469039718788034, 0.14938416205030547]


def test_top_k_keeps_ties_at_the_threshold():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    expected = torch.tensor([[3.0, -INF, 2.0, 2.0, -INF], [5.0, 4.0, -INF, -INF, -INF]])
    assert torch.equal(filter_top_k(logits, 2), expected)
    assert filter_top_k(logits, None) is logits
    assert filter_top_k(logits, 5) is logits
    assert torch.equal(filter_top_k(torch.zeros(1, 4), 1), torch.zeros(1, 4))


def test_top_p_keeps_the_token_that_crosses():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert filter_top_p(probs, 0.4).nonzero().tolist() == [[0, 1]]
    torch.testing.assert_close(filter_top_p(probs, 0.6), torch.tensor([[0.0, 2 / 3, 0.0, 1 / 3]]))
    torch.testing.assert_close(filter_top_p(probs, 0.7), torch.tensor([[0.0, 2 / 3, 0.0, 1 / 3]]))
    assert filter_top_p(probs, 1.0) is probs
    assert filter_top_p(probs, None) is probs


def test_top_p_closes_at_a_sum_of_exactly_p():
    """The codes whose sum is p are all there is to draw, however their sum without the last one would round."""
    for weights in ([4.0, 4.0, 4.0, 2.0, 2.0], [4.0, 3.0, 4.0, 3.0, 4.0, 4.0, 2.0], [3.0, 5.0, 5.0, 1.0, 2.0, 4.0]):
        ordered = torch.tensor(weights).sort(descending=True).values
        probs = ordered / ordered.sum()
        for size, reached in enumerate(probs.cumsum(0)[:-1].tolist(), start=1):
            assert filter_top_p(probs, reached).count_nonzero() == size


def test_filters_agree_with_brute_force():
    logits = torch.randn(50, 23) * 3
    for k, p in ((1, None), (5, 0.5), (23, 0.9), (None, 0.2), (7, 0.999)):
        probs = sampling_probs(logits, DrawSettings(0.8, k, p))
        for row, result in zip(logits, probs):
            order = row.argsort(descending=True)[: k or 23]
            weights = (row[order].double() / 0.8).softmax(0)
            kept = 1 if p is not None else len(order)
            while p is not None and weights[:kept].sum() < p:
                kept += 1
            expected = torch.zeros(23, dtype=torch.float64)
            expected[order[:kept]] = weights[:kept] / weights[:kept].sum()
            torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings(**settings)


def test_guidance_is_linear_and_keeps_masked_codes_out():
    cond, uncond = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), 3 * cond - 2 * uncond)
    low = torch.finfo(torch.float32).min / 2
    cond[:, 3:] = uncond[:, 3:] = low
    assert guide(cond, uncond, 5.0).softmax(-1)[:, 3:].eq(0).all()


@pytest.mark.parametrize("settings", [(1.0, None, None), (0.7, 8, 0.9), (1.3, None, 0.6), (1.0, 3, None)])
def test_draws_follow_the_distribution(settings):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(5)) * 1.5
    probs = sampling_probs(logits, DrawSettings(*settings))
    count = 100_000
    codes = draw(probs.expand(count, -1), seed=11, sample_index_B=torch.arange(count), position=3, depth=1)
    observed = torch.bincount(codes, minlength=20)
    possible = probs[0] > 0
    assert observed[~possible].sum() == 0
    expected = probs[0, possible].double() * count
    assert stats.chisquare(observed[possible].numpy(), (expected * count / expected.sum()).numpy()).pvalue > 1e-3


def test_noise_is_uniform_and_independent_between_addresses():
    addresses = [(position, depth) for position in range(4) for depth in range(3)]
    noise = uniform_noise(5, torch.arange(20_000), addresses)
    assert ((noise >= 0) & (noise < 1)).all()
    for row in noise:
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(noise) - torch.eye(len(addresses))
    assert correlation.abs().max() < 0.04
    assert torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:]]))[0, 1].abs() < 0.04


def test_noise_is_a_function_of_its_address_only():
    index = torch.tensor([4, 9_000_000_000, 0])
    both = uniform_noise(3, index, [(0, 0), (7, 2)])
    assert torch.equal(uniform_noise(3, index[1:2], [(7, 2)])[0], both[1, 1:2])
    for seed, shift, address in ((3, 0, (2, 7)), (4, 0, (7, 2)), (3, 1, (7, 2))):
        assert uniform_noise(seed, index + shift, [address]).ne(both[1]).all()
    assert uniform_noise(2**63 + 5, index, [(0, 0)]).ne(uniform_noise(5, index, [(0, 0)])).all()
    # Pinned, so that a seed means the same images in every release.
    torch.testing.assert_close(both[:, 0], torch.tensor(PINNED, dtype=torch.float64), atol=1e-15, rtol=0)


def test_codes_without_probability_are_never_drawn():
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.299, 0.301, 1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(probs, uniform).tolist() == [1, 1, 3, 3]
    unnormalised = probs * 0.1
    assert invert_cdf(unnormalised, uniform).tolist() == [1, 1, 3, 3]


def test_rounding_of_a_parallel_sum_does_not_let_impossible_codes_in(monkeypatch):
    exact = torch.Tensor.cumsum
    noise = torch.tensor([0.0, 0.0, 1e-6, 0.0, 1e-6])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: exact(self, dim) + noise)
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(2, -1)
    uniform = torch.tensor([0.3000005, 1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(probs, uniform).tolist() == [3, 3]
