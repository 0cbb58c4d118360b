"""Vector pooling against windows cut out one by one."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers.wrappers.vector_pooling import (
    MaxVectorPool2d,
    SoftmaxVectorPool2d,
    max_vector_pool,
    softmax_vector_pool,
)

SETTINGS = [(3, 2, 2, 1), (2, 2, 0, 1), (3, 1, 1, 2), (1, 1, 0, 1), (2, 3, 1, 1)]


def _windows(x, kernel, stride, padding, dilation):
    """(h, w, B, C, k * k) by loops."""
    x = F.pad(x, (padding,) * 4)
    reach = dilation * (kernel - 1)
    rows, columns = (range(0, side - reach, stride) for side in x.shape[2:])
    cut = [[x[:, :, i : i + reach + 1 : dilation, j : j + reach + 1 : dilation] for j in columns] for i in rows]
    return torch.stack([torch.stack([window.flatten(2) for window in row]) for row in cut])


@pytest.mark.parametrize("setting", SETTINGS)
def test_max_keeps_the_longest_vector_whole(setting):
    x = torch.randn(2, 5, 7, 9)
    windows = _windows(x, *setting)
    best = windows.norm(dim=3).argmax(-1)[..., None, None].expand(*windows.shape[:-1], 1)
    expected = windows.gather(-1, best).squeeze(-1).permute(2, 3, 0, 1)
    assert torch.equal(max_vector_pool(x, *setting), expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_softmax_weighs_by_length(setting):
    x = torch.randn(2, 5, 7, 9)
    windows = _windows(x, *setting)
    weights = windows.norm(dim=3, keepdim=True).softmax(-1)
    expected = (windows * weights).sum(-1).permute(2, 3, 0, 1)
    torch.testing.assert_close(softmax_vector_pool(x, *setting), expected)


def test_of_equal_lengths_the_first_is_kept():
    x = torch.tensor([[[[3.0, 0.0], [0.0, 5.0]], [[4.0, 5.0], [5.0, 0.0]]]])
    assert torch.equal(max_vector_pool(x, 2).flatten(), torch.tensor([3.0, 4.0]))


def test_gradients_reach_what_was_kept_and_the_choice_is_constant():
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(max_vector_pool(x, 2, 2).sum(), x)
    assert torch.equal(gradient.sum((2, 3)), torch.full((1, 3), 4.0))
    assert ((gradient == 0) | (gradient == 1)).all() and torch.equal(gradient[:, 0], gradient[:, 2])
    (gradient,) = torch.autograd.grad(softmax_vector_pool(x, 2, 2).sum(), x)
    weights = F.unfold(x.detach().norm(dim=1, keepdim=True), 2, stride=2).softmax(1)
    expected = F.fold(weights, (4, 4), 2, stride=2).expand(-1, 3, -1, -1)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("pool", [MaxVectorPool2d, SoftmaxVectorPool2d])
def test_modules(pool):
    layer = pool(3, 2, padding=1)
    x = torch.randn(2, 5, 8, 6)
    out = layer(x)
    assert out.shape == (2, 5, 4, 3)
    assert torch.equal(out, pool.pool(x, 3, 2, 1, 1))
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert "kernel_size=3, stride=2, padding=1, dilation=1" in repr(layer)
    with pytest.raises(ValueError, match="kernel_size, stride and dilation must be at least 1"):
        pool(0)
    with pytest.raises(ValueError, match=r"takes \(B, C, H, W\), got \(2, 5, 8\)"):
        layer(x[..., 0])
    with pytest.raises(ValueError, match="a side of 2 with padding 0 is smaller than a window of 5"):
        pool(3, dilation=2)(x[:, :, :2])
