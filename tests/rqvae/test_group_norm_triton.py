"""The channels-last group norm in Triton's interpreter, what it serves, and that the CPU's is left alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.commands import succeed

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@pytest.mark.slow
def test_values_and_gradients_equal_those_of_pytorch():
    script = Path(__file__).with_name("group_norm_in_interpreter.py")
    done = succeed(script, timeout=280, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    cases = json.loads(done.out.splitlines()[-1])
    assert len(cases) == 8
    for case in cases:
        assert case["kept"], case
        least = 1e-2 if "bfloat16" in case["case"][4] else 2e-6
        assert all(ours <= max(least, 2 * usual) for ours, usual in zip(case["ours"], case["usual"])), case


def channels_last(*shape: int, **options: object) -> torch.Tensor:
    return torch.randn(*shape).to(**options).contiguous(memory_format=torch.channels_last)


class OtherNorm(nn.GroupNorm):
    """May do anything in its forward."""


@pytest.mark.parametrize(
    ("norm", "x_BCHW", "expected"),
    [
        (nn.GroupNorm(32, 64), channels_last(2, 64, 3, 3), True),
        (nn.GroupNorm(32, 64), channels_last(2, 64, 3, 3, dtype=torch.bfloat16), True),
        (nn.GroupNorm(32, 64), channels_last(2, 64, 3, 3, dtype=torch.float16), False),
        (nn.GroupNorm(32, 64), torch.randn(2, 64, 3, 3), False),
        (nn.GroupNorm(32, 64), torch.randn(2, 64, 3), False),
        (nn.GroupNorm(32, 64), channels_last(0, 64, 3, 3), False),
        (nn.GroupNorm(32, 32), channels_last(2, 32, 1, 1), False),
        (nn.GroupNorm(32, 64), channels_last(2, 64, 1, 1), True),
        (nn.GroupNorm(32, 64, affine=False), channels_last(2, 64, 3, 3), False),
        (nn.GroupNorm(32, 64).double(), channels_last(2, 64, 3, 3), False),
        (OtherNorm(32, 64), channels_last(2, 64, 3, 3), False),
    ],
)
def test_what_it_serves(norm, x_BCHW, expected):
    from rqvae.group_norm_triton import serves

    assert serves(norm, x_BCHW) is expected
