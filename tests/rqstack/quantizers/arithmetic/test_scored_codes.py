"""Codes by score, and losses over all scores: against the plain formulas with the whole N x K matrix."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.quantizer_speed import extra_memory
from rqstack.quantizers.arithmetic import nearest
from rqstack.quantizers.arithmetic.scored_codes import (
    best_codes,
    code_scores,
    distribution_entropy,
    drawn_codes,
    expected_by_score,
    score_cross_entropy,
    top_codes,
    usage_entropy_by_position,
)

INNER = pytest.mark.parametrize("inner", [False, True])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that every loop over chunks runs more than once."""
    monkeypatch.setattr(nearest, "CPU_CHUNK_BYTES", 1024)
    monkeypatch.setattr(nearest, "MIN_CHUNK_ROWS", 4)


def data(num=50, codes=23, dim=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, dim, generator=generator), torch.randn(codes, dim, generator=generator)


def plain(x, weight, inner):
    return x @ weight.T if inner else -torch.cdist(x, weight, compute_mode="donot_use_mm_for_euclid_dist")


@INNER
def test_scores_and_the_codes_of_the_highest(inner):
    x, weight = data()
    expected = plain(x, weight, inner)
    torch.testing.assert_close(code_scores(x, weight, inner), expected)
    assert torch.equal(best_codes(x, weight, inner), expected.argmax(1))
    assert torch.equal(top_codes(x, weight, 5, inner), expected.topk(5, 1).indices)


def test_inner_products_do_not_normalise():
    x = torch.tensor([[1.0, 0.0]])
    weight = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert best_codes(x, weight, inner=True) == 1
    assert best_codes(x, weight, inner=False) == 0


@INNER
def test_draws_follow_the_softmax(inner):
    torch.manual_seed(0)
    x, weight = data(1, 5)
    rows = x.expand(20000, -1)
    drawn = drawn_codes(rows, weight, 0.7, inner).bincount(minlength=5) / 20000
    torch.testing.assert_close(drawn, (plain(x, weight, inner)[0] / 0.7).softmax(0), atol=0.02, rtol=0)
    several = drawn_codes(rows[:100], weight, 0.7, inner, num_draws=5)
    assert torch.equal(several.sort(1).values, torch.arange(5).expand(100, 5))
    assert several[:, 0].unique().numel() > 1
    with pytest.raises(ValueError, match="temp must be positive"):
        drawn_codes(x, weight, 0.0, inner)


def gradients(value, *tensors):
    return torch.autograd.grad(value, tensors)


@INNER
def test_expected_vectors(inner):
    x, weight = (t.requires_grad_() for t in data())
    found = expected_by_score(x, weight, 0.3, inner)
    expected = (plain(x, weight, inner) / 0.3).softmax(1) @ weight
    torch.testing.assert_close(found, expected)
    pairs = (gradients(value.square().sum(), x, weight) for value in (found, expected))
    torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-4)


@INNER
def test_cross_entropy(inner):
    x, weight = data(60)
    x, weight = x.view(2, 30, 6).requires_grad_(), torch.stack([weight, weight.flip(0)]).requires_grad_()
    codes = torch.arange(60).view(2, 30) % 23
    codes[:, ::4] = -1
    found = score_cross_entropy(x, weight, codes, inner)
    logits = torch.cat([plain(a, b, inner) for a, b in zip(x, weight, strict=True)])
    expected = F.cross_entropy(logits, codes.flatten(), ignore_index=-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, x, weight), gradients(expected, x, weight), rtol=1e-4, atol=1e-6)
    assert score_cross_entropy(x, weight, torch.full_like(codes, -1), inner) == 0


@INNER
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("positions", "rows"), [(7, 3), (2, 30), (1, 50)])
def test_usage_entropy_by_position(inner, masked, positions, rows):
    x, weight = data(2 * positions * rows)
    x = x.view(2, positions, rows, 6).requires_grad_()
    weight = torch.stack([weight, weight.flip(1)]).requires_grad_()
    valid = torch.arange(positions * rows).view(positions, rows) % 3 != 0 if masked else None
    if masked:
        valid[-1] &= positions == 1
    found = usage_entropy_by_position(x, weight, 0.4, inner, valid)
    probs = torch.stack([(plain(a.flatten(0, 1), b, inner) / 0.4).softmax(1) for a, b in zip(x, weight, strict=True)])
    probs = probs.view(2, positions, rows, -1)
    kept = range(positions) if valid is None else valid.any(1).nonzero().flatten().tolist()
    every = torch.ones(rows, dtype=torch.bool)
    means = [probs[:, p][:, every if valid is None else valid[p]].flatten(0, 1).mean(0) for p in kept]
    expected = distribution_entropy(torch.stack(means)).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, x, weight), gradients(expected, x, weight), rtol=1e-4, atol=1e-6)


def test_neither_pass_holds_all_scores():
    size, budget = 512, 2**16
    x, weight = torch.randn(1, size, 4), torch.randn(1, size, 4)
    codes = torch.arange(size)[None]
    losses = {
        "cross entropy": lambda x: score_cross_entropy(x, weight, codes, inner=False),
        "usage of single rows": lambda x: usage_entropy_by_position(x[:, :, None], weight, 0.5, inner=False),
        "usage of all rows": lambda x: usage_entropy_by_position(x[:, None], weight, 0.5, inner=True),
        "expected": lambda x: expected_by_score(x[0], weight[0], 0.5, inner=False).sum(),
    }
    for name, loss in losses.items():

        def run(loss=loss):
            loss(x.clone().requires_grad_()).backward()

        nearest.CPU_CHUNK_BYTES = budget  # put back by the fixture
        held = extra_memory(run, x.device)
        assert held < 0.4, (name, held)
        assert 4e-6 * size * size > 1.0
    search = extra_memory(lambda: drawn_codes(x[0], weight[0], 1.0, inner=True), x.device)
    assert search < 0.2, search


def test_entropy_of_known_distributions():
    assert distribution_entropy(torch.tensor([[1.0, 0.0]])) == 0
    torch.testing.assert_close(distribution_entropy(torch.full((1, 8), 0.125)), torch.tensor([8.0]).log())


def test_scores_between_equal_vectors_have_a_finite_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    gradient = torch.autograd.grad(code_scores(x, torch.zeros(4, 3), inner=False).sum(), x)[0]
    assert torch.equal(gradient, torch.zeros(2, 3))
