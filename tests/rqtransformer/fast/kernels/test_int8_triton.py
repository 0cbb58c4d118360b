"""The product with int8 weights in Triton's interpreter, and what it serves."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.commands import succeed

SCRIPT = Path(__file__).with_name("int8_in_interpreter.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@pytest.mark.slow
@needs_triton
def test_the_kernel_is_the_expanded_product():
    done = succeed(SCRIPT, timeout=290, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    found = json.loads(done.out.splitlines()[-1])
    assert max(found["far"].values()) < 2e-3
    assert found["packed"] < 0.02
    assert found["called"] == 1  # few rows alone


@needs_triton
def test_it_serves_what_it_knows_and_nothing_else():
    from rqtransformer.fast.kernels.int8_triton import serves

    x, weight, scale = torch.ones(4, 8).bfloat16(), torch.ones(6, 8, dtype=torch.int8), torch.ones(6).bfloat16()
    assert serves(x, weight, scale)
    assert serves(x.half(), weight, scale.half())
    assert not serves(x.float(), weight, scale.float())
    assert not serves(x, weight, scale.float())
    assert not serves(x, weight.to(torch.uint8), scale)
    assert not serves(x.expand(20, 4, 8).flatten(0, 1), weight, scale)
    assert not serves(x[:, :7], weight, scale)
    assert not serves(x[:, ::2], weight[:, ::2], scale)
    assert not serves(x[None], weight, scale)
    assert not serves(torch.nn.Parameter(x), weight, scale)
