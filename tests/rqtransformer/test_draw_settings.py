"""A rule that is added to the table of the draw: every form of decoding honours it, and what does not know it waits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rqtransformer import HierarchicalConfig, HierarchicalTransformer, hierarchical, sample
from rqtransformer.decoding import Decoder, DrawSettings, sampling_request
from rqtransformer.decoding.logits import draw, invert_cdf, sampling_probs
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import Rule, row

SETTINGS = {"temperature": 1.1, "top_k": 7, "top_p": 0.9}
MIN_P = 0.45  # shows in the flat logits of a small model
LOW_MIN_P = 0.15  # cuts about as much as top-p does, in the logits of `peaked`


def check_min_p(p: float | None) -> None:
    if p is not None and not 0.0 < p < 1.0:
        raise ValueError(f"min_p={p} must lie between 0 and 1")


def min_p_of_logits(logits: Tensor, p: float) -> Tensor:
    low = logits.softmax(-1) < p * logits.softmax(-1).amax(-1, keepdim=True)
    return logits.masked_fill(low, float("-inf"))


def min_p_of_probs(probs: Tensor, p: float) -> Tensor:
    kept = probs.masked_fill(probs < p * probs.amax(-1, keepdim=True), 0.0)
    return kept / kept.sum(-1, keepdim=True)


@dataclass(frozen=True)
class CutLogits(DrawSettings):
    """min-p before top-p."""

    min_p: float | None = row(None, Rule(check_min_p, min_p_of_logits))


@dataclass(frozen=True)
class CutProbs(DrawSettings):
    """min-p after top-p."""

    min_p: float | None = row(None, Rule(check_min_p, min_p_of_probs, after_softmax=True))


@pytest.fixture(params=[CutLogits, CutProbs])
def wider(request, monkeypatch) -> type[DrawSettings]:
    """A table with one more row, in the place of the product's."""
    for module in (sampling_request, hierarchical):
        monkeypatch.setattr(module, "DrawSettings", request.param)
    return request.param


@pytest.fixture
def fast_calls(monkeypatch) -> list[str]:
    """The forms that ran with all rules in one call, or with the position kept on the device."""
    seen: list[str] = []
    for name in ("draw_position", "position_index"):
        plain = getattr(Decoder, name)
        monkeypatch.setattr(Decoder, name, lambda *given, name=name, plain=plain: seen.append(name) or plain(*given))
    return seen


def peaked() -> Tensor:
    return torch.randn(200, 40, generator=torch.Generator().manual_seed(2)) * 1.5


def by_brute_force(logits_BV: Tensor, first: bool, min_p: float | None = MIN_P) -> Tensor:
    """Temperature 1.1, the best 7, the smallest set that reaches 0.9; min-p between the last two, or behind them."""
    result_BV = torch.zeros_like(logits_BV)
    for logits, result in zip(logits_BV, result_BV):
        codes = logits.argsort(descending=True)[:7]
        probs = (logits[codes] / 1.1).softmax(0)
        for step in ("min_p", "top_p") if first else ("top_p", "min_p"):
            if step == "min_p":
                kept = int((probs >= (min_p or 0.0) * probs[0]).sum())
            else:
                kept = 1 + int((probs.cumsum(0)[:-1] < 0.9).sum())
            codes, probs = codes[:kept], probs[:kept] / probs[:kept].sum()
        result[codes] = probs
    return result_BV


def decoded_by_hand(model, tokenizer, count: int, first: bool, min_p: list[float | None]) -> Tensor:
    """Uncached decoding: the whole model for every code."""
    height, width, depth = model.config.block_size
    codes_BHWD = torch.zeros(count, height, width, depth, dtype=torch.long)
    with torch.no_grad():
        for position in range(height * width):
            i, j = divmod(position, width)
            for d in range(depth):
                logits = model(codes_BHWD, tokenizer).logits[:, i, j, d]
                probs = by_brute_force(logits, first, min_p[d])
                codes_BHWD[:, i, j, d] = draw(probs, 5, torch.arange(count), position, d)
    return codes_BHWD


@pytest.mark.parametrize("min_p", [MIN_P, [None, MIN_P, 0.8]])
@pytest.mark.parametrize("graphs", [False, True])
def test_sampling_honours_a_rule_that_is_added(graphs, min_p, wider, build, fast_calls, either_path):
    model, tokenizer = build()
    each = min_p if isinstance(min_p, list) else [min_p] * 3
    expected = decoded_by_hand(model, tokenizer, 8, wider is CutLogits, each)
    assert not torch.equal(expected, decoded_by_hand(model, tokenizer, 8, True, [None] * 3)), "the rule must show"
    drawn = sample(model, tokenizer, num_samples=8, seed=5, graphs=graphs, min_p=min_p, **SETTINGS)
    assert torch.equal(drawn, expected)
    assert fast_calls == []


@pytest.mark.parametrize("graphs", [False, True])
def test_a_rule_that_is_switched_off_costs_nothing(graphs, wider, build, monkeypatch):
    model, tokenizer = build()
    expected = decoded_by_hand(model, tokenizer, 4, True, [None] * 3)
    monkeypatch.setattr("rqtransformer.decoding.truncation.sampling_probs", None)
    assert torch.equal(sample(model, tokenizer, num_samples=4, seed=5, graphs=graphs, **SETTINGS), expected)


def test_a_draw_with_an_added_rule_equals_brute_force(wider, either_path):
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    settings = wider(**SETTINGS, min_p=LOW_MIN_P)
    expected = by_brute_force(peaked(), wider is CutLogits, LOW_MIN_P)
    torch.testing.assert_close(sampling_probs(peaked(), settings), expected, atol=1e-6, rtol=0)
    codes = draw_truncated(peaked(), uniform, settings)
    assert torch.equal(codes, invert_cdf(expected, uniform))
    assert not torch.equal(codes, draw_truncated(peaked(), uniform, DrawSettings(**SETTINGS)))


def test_the_two_places_of_a_rule_differ():
    before, after = (by_brute_force(peaked(), first, LOW_MIN_P) for first in (True, False))
    assert not torch.equal(before > 0, after > 0)


def test_the_walk_through_nested_blocks_honours_it(wider, either_path):
    torch.manual_seed(0)
    model = HierarchicalTransformer(HierarchicalConfig(11, 16, (1, 1), (2, 3), heads=2, dim_head=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    drawn = model.generate(batch_size=8, seed=5, min_p=MIN_P, **SETTINGS).flatten(1)
    expected = torch.zeros(8, 6, dtype=torch.long)
    for position in range(6):
        logits = model.token_logits(expected)[:, position].detach()
        probs = by_brute_force(logits, wider is CutLogits)
        expected[:, position] = draw(probs, 5, torch.arange(8), position, 0)
    assert torch.equal(drawn, expected)


def test_values_out_of_range_and_unknown_rules_are_named(wider, build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="min_p=2 must lie between 0 and 1"):
        sample(model, tokenizer, num_samples=1, min_p=2)
    with pytest.raises(ValueError, match=r"min_p=\[0.1, 0.2\] must be one value or one per depth \(3\)"):
        sample(model, tokenizer, num_samples=1, min_p=[0.1, 0.2])
    with pytest.raises(TypeError, match="min_q"):
        sample(model, tokenizer, num_samples=1, min_q=0.5)
