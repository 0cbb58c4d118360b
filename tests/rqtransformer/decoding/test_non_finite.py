"""Numbers that are not finite: every path of every sampler says so instead of handing out codes."""

from __future__ import annotations

import math

import pytest
import torch

from rqtransformer import HierarchicalConfig, HierarchicalTransformer, compat, sample, sample_stream
from rqtransformer.decoding import check_codes, sample_batches
from rqtransformer.decoding.logits import draw, invert_cdf, sampling_probs
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.finite_draws import NOT_DRAWN, NonFiniteError

SETTINGS = [
    DrawSettings(),
    DrawSettings(top_k=1),
    DrawSettings(top_k=3),
    DrawSettings(top_p=0.9),
    DrawSettings(temperature=0.7, top_k=5, top_p=0.8),
]
PATHS = {
    "plain or compiled": {},
    "fixed buffers": {"graphs": True},
    "bf16": {"amp_dtype": torch.bfloat16},
    "int8": {"weights": "int8"},
    "filtered": {"top_k": 3, "top_p": 0.9},
    "guided": {"cfg_scale": 2.0},
}
ROWS = {
    "one NaN": {2: math.nan},
    "a negative NaN": {2: -math.nan},
    "an infinity": {2: math.inf},
    "two infinities": {2: math.inf, 4: math.inf},
    "NaN alone": {v: math.nan for v in range(7)},
    "-inf alone": {v: -math.inf for v in range(7)},
}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_is_no_distribution_gives_no_code(row, settings, either_path):
    logits = torch.linspace(-1, 1, 7).repeat(3, 1)
    for code, value in ROWS[row].items():
        logits[1, code] = value
    uniform = torch.full((3,), 0.5, dtype=torch.float64)
    codes = draw_truncated(logits, uniform, settings).tolist()
    assert codes[1] == NOT_DRAWN and min(codes[0], codes[2]) >= 0
    assert invert_cdf(sampling_probs(logits, settings), uniform).tolist() == codes
    assert draw(sampling_probs(logits, settings), 0, torch.arange(3), 0, 0)[1] == NOT_DRAWN


def test_codes_that_may_not_be_drawn_are_no_fault(either_path):
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    uniform = torch.full((1,), 0.9, dtype=torch.float64)
    assert all(draw_truncated(logits, uniform, settings).tolist() == [2] for settings in SETTINGS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["NaN", "inf"])
@pytest.mark.parametrize("part", ["linear", "layer_norm"])
def test_every_path_names_the_weight_that_is_not_finite(part, path, value, build, either_path):
    model, tokenizer = build(cond_drop_prob=0.1)
    with torch.no_grad():
        getattr(model.classifier, part).weight[3] = value
    with pytest.raises(NonFiniteError, match=rf"not finite: classifier\.{part}\.weight$") as error:
        sample(model, tokenizer, num_samples=3, **PATHS[path])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("graphs", [False, True])
def test_code_vectors_are_asked_for_once_where_all_is_well(graphs, build, monkeypatch):
    model, tokenizer = build()
    asked, of_depth = [], tokenizer.codebook
    monkeypatch.setattr(tokenizer, "codebook", lambda depth: asked.append(depth) or of_depth(depth))
    sample(model, tokenizer, num_samples=2, graphs=graphs)
    assert asked == list(range(model.depth))


def test_a_nan_in_any_weight_of_body_and_head_is_seen(build, either_path):
    model, tokenizer = build()
    for name, parameter in model.named_parameters():
        if name.startswith("cond_emb") or "key.bias" in name:
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(math.nan)
        with pytest.raises(NonFiniteError, match=f"not finite: {name}"):
            sample(model, tokenizer, num_samples=2)
        with torch.no_grad():
            parameter.copy_(kept)
    assert sample(model, tokenizer, num_samples=2).min() >= 0


def test_codebooks_are_named_and_overflow_is_told_from_broken_weights(build, either_path):
    model, tokenizer = build()
    tokenizer.books[1].fill_(math.nan)
    with pytest.raises(NonFiniteError, match="not finite: codebook of depth 1"):
        sample(model, tokenizer, num_samples=2)
    model, tokenizer = build()
    with torch.no_grad():
        model.classifier.linear.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match="all weights are finite"):
        sample(model, tokenizer, num_samples=2)


def test_streams_and_batches_end_in_the_error_and_the_look_can_be_put_off(build, either_path):
    model, tokenizer = build()
    with torch.no_grad():
        model.classifier.layer_norm.weight.fill_(math.nan)
    seen = []
    with pytest.raises(NonFiniteError):
        for partial in sample_stream(model, tokenizer, num_samples=2):
            seen.append(partial.position)
    assert seen == list(range(model.num_positions))
    with pytest.raises(NonFiniteError):
        next(sample_batches(model, tokenizer, [None] * 3, 2))
    codes = sample(model, tokenizer, num_samples=2, checked=False)
    assert codes.max() == NOT_DRAWN
    with pytest.raises(NonFiniteError, match="2 of 2 samples"):
        check_codes(codes, model, tokenizer)
    with torch.no_grad():
        model.classifier.layer_norm.weight.fill_(0.1)
    codes = sample(model, tokenizer, num_samples=2)
    assert check_codes(codes, model, tokenizer) is codes


def hierarchical() -> HierarchicalTransformer:
    return HierarchicalTransformer(HierarchicalConfig(7, 16, (1, 1), (3, 2), heads=2, dim_head=8))


def two_levels() -> HierarchicalTransformer:
    return compat.RQTransformer(
        num_tokens=7, dim=16, max_spatial_seq_len=3, depth_seq_len=2, spatial_layers=1, depth_layers=1, heads=2
    )


def any_levels() -> HierarchicalTransformer:
    return compat.HierarchicalCausalTransformer(num_tokens=7, dim=16, depth=(1, 1), max_seq_len=(3, 2), heads=2)


@pytest.mark.parametrize("make", [hierarchical, two_levels, any_levels])
@pytest.mark.parametrize("name", ["to_logits.weight", "token_emb.weight", "start"])
def test_the_hierarchical_models_say_it_too(make, name, either_path):
    model = make()
    with torch.no_grad():
        dict(model.named_parameters())[name].fill_(math.nan)
    with pytest.raises(NonFiniteError, match=f"not finite: {name}"):
        model.generate()
    with torch.no_grad():
        dict(model.named_parameters())[name].fill_(0.1)
    assert model.generate().min() >= 0
