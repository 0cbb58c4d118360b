"""The kernels of attention over the cache and of sum and norm in Triton's interpreter, and what they serve."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.commands import succeed

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@pytest.fixture(scope="module")
def found() -> dict:
    script = Path(__file__).with_name("layers_in_interpreter.py")
    done = succeed(script, timeout=280, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return json.loads(done.out.splitlines()[-1])


@pytest.mark.slow
def test_attention_equals_the_models_own_and_fills_the_cache(found):
    assert len(found["attention"]) == 8
    for case in found["attention"]:
        assert case["cache"] and case["layout"] and case["difference"] <= case["allowed"], case


@pytest.mark.slow
def test_sum_and_norm_equal_those_in_fp32(found):
    assert len(found["norm"]) == 7
    for case in found["norm"]:
        assert case["sum"] and case["difference"] <= case["allowed"], case


def test_attention_serves_what_it_knows_and_nothing_else():
    from rqtransformer.fast.kernels.attention_triton import serves

    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 1, 8), torch.randn(3, 2, 1, 8)
    stored, index, slopes = torch.zeros(2, 3, 2, 6, 8), torch.zeros(1, dtype=torch.int64), torch.ones(4)
    assert serves(query, key, value, stored, index) and serves(query.half(), key, value, stored, index, slopes)
    assert not serves(query.double(), key, value, stored, index)
    assert not serves(query[:, :3], key, value, stored, index)
    assert not serves(query.expand(3, 4, 2, 8), key, value, stored, index)
    assert not serves(query, key[:, :1], value, stored, index)
    assert not serves(query, key, value, stored.transpose(3, 4).contiguous().transpose(3, 4), index)
    assert not serves(query, key, value, stored.double(), index)
    assert not serves(query, key, value, stored, index.int())
    assert not serves(query, key, value, stored, index, slopes[:2])
    assert not serves(query, key, value, stored, index, slopes.double())
    assert not serves(torch.nn.Parameter(query), key, value, stored, index)


def test_sum_and_norm_serve_what_they_know_and_nothing_else():
    from rqtransformer.fast.kernels.norm_triton import serves

    x, weight = torch.randn(3, 8), torch.ones(8)
    assert serves(x, x, weight, weight, weight, torch.bfloat16) and serves(x, None, None, weight, None, torch.float16)
    assert not serves(x, x, weight, weight, weight, torch.float64)
    assert not serves(x.double(), x, weight, weight, weight, torch.float32)
    assert not serves(x, x[:2], weight, weight, weight, torch.float32)
    assert not serves(x, x, weight[:4], weight, weight, torch.float32)
    assert not serves(x.T.contiguous().T, x, weight, weight, weight, torch.float32)
    assert not serves(x[None], x[None], weight, weight, weight, torch.float32)
    assert not serves(x, x, weight, torch.nn.Parameter(weight), weight, torch.float32)
