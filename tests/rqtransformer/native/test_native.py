"""The compiled path gives the same numbers as torch's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rqtransformer import native, sample
from rqtransformer.decoding import Decoder, DrawSettings
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.fast.packing import PackedLinear
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.native import build as building
from rqtransformer.native import calls

AVX2 = tuple("-mavx2" if flag == "-march=native" else flag for flag in building.FLAGS) + ("-mfma",)


@pytest.fixture(params=["native", "avx2"])
def compiled(request, monkeypatch, tmp_path_factory) -> bool:
    """Each way to compile; False where this machine has no compiler, and then nothing is compiled."""
    if building.find_compiler() is None:
        assert calls.library() is None
        return False
    if request.param == "avx2":
        path = building.build(building.find_compiler(), tmp_path_factory.getbasetemp() / "libraries", AVX2)
        library = calls.load(path)
        monkeypatch.setattr(calls, "library", lambda: library)
    return True


@pytest.mark.parametrize("shape", [(64, 32), (50, 7), (5, 300)])
def test_maps_of_any_size(shape, compiled):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(300, shape[1])
    packed = PackedLinear(weight, bias, WeightFormat())
    assert (packed.native is not None) == compiled
    for rows in (1, 3, 8, 20, 300):
        part, residual = x[:rows], torch.randn(rows, shape[0])
        expected = nn.functional.linear(part, weight, bias)
        torch.testing.assert_close(packed(part), expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            packed(part, residual, gelu=True), residual + nn.functional.gelu(expected), atol=2e-5, rtol=1e-5
        )
    assert packed(x[:0]).shape == (0, shape[0])


def test_activations_over_their_whole_range(compiled):
    x = torch.cat([torch.linspace(-20, 20, 4000), torch.tensor([0.0, -0.0, 1e-30, -200.0, 1e30, -1e30])]).unsqueeze(1)
    identity = PackedLinear(torch.ones(1, 1), None, WeightFormat())
    exact = nn.functional.gelu(x.double()).float()  # torch's fp32 is off by up to 1e-6
    torch.testing.assert_close(identity(x, gelu=True), exact, atol=5e-7 if compiled else 2e-6, rtol=1e-6)
    if compiled:
        expected = x * torch.sigmoid(1.702 * x)
        torch.testing.assert_close(identity.native(x, None, native.SIGMOID_GELU), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_k": 5, "top_p": 0.8, "temperature": 1.3}, {"cfg_scale": 3.0}])
def test_codes_are_those_of_torch_and_of_any_number_of_threads(settings, compiled, build, monkeypatch):
    model, tokenizer = build(cond_drop_prob=0.1, shared_cls_emb=False)
    cond = torch.arange(20) % 5
    codes = sample(model, tokenizer, cond, seed=3, **settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(sample(model, tokenizer, cond, seed=3, **settings), codes)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(calls, "library", lambda: None)
    fresh, _ = build(cond_drop_prob=0.1, shared_cls_emb=False)
    assert torch.equal(sample(fresh, tokenizer, cond, seed=3, **settings), codes)


MODELS = {
    "code vectors": {},
    "no sums": {"cumsum_depth_ctx": False},
    "own table for the body": {"input_emb_vqvae": False},
    "own table for the head": {"head_emb_vqvae": False},
    "a table per depth": {
        "input_emb_vqvae": False,
        "head_emb_vqvae": False,
        "shared_tok_emb": False,
        "shared_cls_emb": False,
        "vocab_size": [11, 7, 9],
    },
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
def test_a_position_in_one_call_is_the_same_as_depth_by_depth(changes, compiled, build, monkeypatch):
    model, tokenizer = build(**changes)
    calls_made, in_one = [], Decoder.draw_position
    monkeypatch.setattr(Decoder, "draw_position", lambda *given: calls_made.append(1) or in_one(*given))
    settings = {"num_samples": 50, "temperature": [1.0, 0.8, 1.2], "top_k": [5, 4, 3], "top_p": 0.9, "seed": 4}
    codes = sample(model, tokenizer, **settings)
    assert len(calls_made) == (model.num_positions if compiled else 0)
    monkeypatch.setattr(Decoder, "compiled_position", lambda *given: None)
    assert torch.equal(sample(model, tokenizer, **settings), codes)


def test_draws_at_the_edges(compiled):
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 1.0, -0.0, float("-inf")]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.25, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert draw_truncated(logits, uniform, DrawSettings(1.0, 2, None)).tolist() == [1, 1, 3, 3]
    assert draw_truncated(logits, uniform, DrawSettings(1.0, None, 1e-9)).tolist() == [1] * 4
    assert draw_truncated(logits, uniform, DrawSettings(1e-3, None, None)).tolist() == [1, 1, 3, 3]
    assert draw_truncated(logits, uniform, DrawSettings(1.0, 3, None)).tolist()[::3] == [0, 4]  # 0 and -0 tie at k
