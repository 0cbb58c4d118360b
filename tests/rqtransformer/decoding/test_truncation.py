"""The fast draw against the reference rule: the same codes, the same distribution, the same ties."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from rqstack.counter_noise import uniform_noise
from rqtransformer.decoding import truncation
from rqtransformer.decoding.logits import invert_cdf, sampling_probs
from rqtransformer.decoding.truncation import draw_truncated, kept_codes
from rqtransformer.draw_settings import DrawSettings

SETTINGS = [(1.0, 256, 0.95), (1.0, None, 0.9), (0.7, 10, None), (1.3, 100, 0.999), (1.0, 2000, 0.5), (1.0, None, None)]
INF = float("inf")


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocabulary", [2048, 1000, 7])
def test_the_fast_draw_gives_the_codes_of_the_reference(settings, vocabulary, either_path):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, vocabulary, generator=generator) * 2
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    expected = invert_cdf(sampling_probs(logits, DrawSettings(*settings)), uniform)
    assert torch.equal(draw_truncated(logits, uniform, DrawSettings(*settings)), expected)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_hundred_thousand_draws_follow_the_reference(settings, either_path):
    logits = torch.randn(1, 512, generator=torch.Generator().manual_seed(5)) * 1.5
    probs = sampling_probs(logits, DrawSettings(*settings))[0].double()
    uniform = uniform_noise(11, torch.arange(100_000), [(3, 1)])[0]
    observed = torch.zeros(512)
    for part in uniform.split(10_000):
        codes = draw_truncated(logits.expand(len(part), -1), part, DrawSettings(*settings))
        observed += torch.bincount(codes, minlength=512)
    assert observed[probs == 0].sum() == 0
    likely = probs * 100_000 >= 5
    counts = torch.cat([observed[likely], observed[~likely].sum().view(1)])
    expected = torch.cat([probs[likely], probs[~likely].sum().view(1)]) * 100_000
    counts, expected = counts[expected > 0].double(), expected[expected > 0]
    assert stats.chisquare(counts.numpy(), (expected * counts.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_ties_at_k_all_stay_and_the_crossing_keeps_its_number():
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0, 2.0]])
    assert kept_codes(scores, 2, None).tolist() == [[True, False, True, True, False, True]]
    even = torch.zeros(1, 8)
    assert kept_codes(even, 3, 0.5).tolist() == [[True] * 4 + [False] * 4]  # all eight tie at k; half of them reach p
    assert kept_codes(even, None, 0.6).sum() == 5
    assert kept_codes(even, 1, 1e-6).sum() == 1


@pytest.mark.parametrize("settings", [(1.0, 6, 0.8), (1.0, None, 0.55), (1.0, 5, None), (2.0, 30, 0.9)])
def test_ties_are_counted_as_the_reference_counts_them(settings, either_path):
    temperature, top_k, top_p = settings
    logits = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)).mul(2).round() / 2
    expected = sampling_probs(logits, DrawSettings(*settings))
    kept = kept_codes(logits / temperature, top_k, top_p)
    assert torch.equal(kept.sum(1), (expected > 0).sum(1))
    lowest = torch.where(kept, logits, torch.full_like(logits, INF)).amin(1)
    assert torch.equal(lowest, torch.where(expected > 0, logits, torch.full_like(logits, INF)).amin(1))
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    codes = draw_truncated(logits, uniform, DrawSettings(*settings))
    assert kept.gather(1, codes.unsqueeze(1)).all()


def test_a_row_does_not_depend_on_the_ties_of_another(either_path):
    plain = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = torch.cat([draw_truncated(plain, u, DrawSettings(1.0, 6, 0.8)) for u in uniform.split(1)])
    tied = torch.zeros(1, 64)
    beside = [draw_truncated(torch.cat([plain, tied]), u.expand(2), DrawSettings(1.0, 6, 0.8))[0] for u in uniform]
    assert torch.equal(torch.stack(beside), alone)


def test_without_numpy_the_codes_are_the_same(monkeypatch):
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(8))
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = [draw_truncated(logits, uniform, DrawSettings(*settings)) for settings in SETTINGS]
    monkeypatch.setattr(truncation, "_numpy_sorts", lambda: False)
    assert all(
        torch.equal(draw_truncated(logits, uniform, DrawSettings(*settings)), codes)
        for settings, codes in zip(SETTINGS, expected)
    )


def test_impossible_codes_stay_impossible(either_path):
    low = torch.finfo(torch.float32).min / 2
    logits = torch.randn(64, 128, generator=torch.Generator().manual_seed(4))
    logits[:, 5:] = low
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for settings in ((1.0, 20, 0.9), (1.0, 20, None), (1.0, None, 0.99)):
        codes = draw_truncated(logits, uniform, DrawSettings(*settings))
        assert torch.equal(codes, invert_cdf(sampling_probs(logits, DrawSettings(*settings)), uniform))
        assert codes.max() < 5
