"""Normalisation on a GPU: which form is taken there, and what whoever traces it is told; on fake tensors."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rqvae import blocks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


def test_blocks_on_a_gpu_take_it_and_those_on_a_cpu_do_not(monkeypatch):
    """With fake tensors, which have a device and no values."""
    from rqstack import triton_kernels
    from rqvae import group_norm_triton

    monkeypatch.setattr(triton_kernels, "_stands_the_trial", lambda trial, device: True)

    calls = []
    monkeypatch.setattr(group_norm_triton, "group_norm", lambda norm, x, silu: calls.append(silu) or F.silu(norm(x)))
    x_BCHW = torch.randn(1, 64, 4, 4).contiguous(memory_format=torch.channels_last)
    blocks.ResBlock(64, 64, 0.0).to(memory_format=torch.channels_last)(x_BCHW)
    assert calls == []
    with FakeTensorMode(), torch.device("cuda"):
        norm, fake_BCHW = nn.GroupNorm(32, 64), torch.empty(1, 64, 4, 4).contiguous(memory_format=torch.channels_last)
        for silu in (True, False):
            blocks.normalised(norm, fake_BCHW, silu)
        assert calls == [True, False]
        blocks.normalised(norm, fake_BCHW.half())
        monkeypatch.setenv("RQTRANSFORMER_TRITON", "0")
        blocks.normalised(norm, fake_BCHW)
        assert calls == [True, False]


def test_fake_tensors_pass_through_the_operators():
    """Shapes, types and layouts of what the kernels give, as whoever traces them is told."""
    from rqvae.group_norm_triton import _backward_op, _forward_op

    with FakeTensorMode(), torch.device("cuda"):
        x_BCHW = torch.empty(2, 64, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight_C, bias_C = torch.empty(64), torch.empty(64)
        result_BCHW, mean_BG, scale_BG = _forward_op(x_BCHW, weight_C, bias_C, 32, 1e-6, True)
        gradients = _backward_op(result_BCHW, x_BCHW, weight_C, bias_C, mean_BG, scale_BG, True)
    for made, like in zip((result_BCHW, *gradients), (x_BCHW, x_BCHW, weight_C, bias_C), strict=True):
        assert (made.shape, made.stride(), made.dtype, made.device) == (
            like.shape,
            like.stride(),
            like.dtype,
            like.device,
        )
    assert mean_BG.shape == scale_BG.shape == (2, 32) and mean_BG.dtype == scale_BG.dtype == torch.float32
