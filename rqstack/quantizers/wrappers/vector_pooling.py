"""Pooling of vectors: every window of a map becomes one vector, chosen or weighted by the lengths of the vectors in it.

Legend: B batch, C channels, H W map, h w pooled map, k kernel size, P positions of the padded map.

Max pooling of single channels mixes the channels of different vectors; these keep whole vectors together, as a map that
is to be quantized needs. Zero vectors around the map (padding) take part with length 0. The choice and the weights are
constants to the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.signatures import checks_arguments


def pooled_size(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    """Windows along a side; ValueError where not even one fits."""
    windows = (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    if windows < 1:
        raise ValueError(
            f"a side of {size} with padding {padding} is smaller than a window of {dilation * (kernel_size - 1) + 1}"
        )
    return windows


def max_vector_pool(
    x_BCHW: Tensor, kernel_size: int = 3, stride: int = 2, padding: int = 0, dilation: int = 1
) -> Tensor:
    """The longest vector of every window (B, C, h, w); of equally long ones the first in reading order."""
    h, w = (pooled_size(side, kernel_size, stride, padding, dilation) for side in x_BCHW.shape[2:])
    x_BCHW = F.pad(x_BCHW, (padding,) * 4)
    with torch.no_grad():
        lengths = x_BCHW.float().norm(dim=1, keepdim=True)
        _, chosen = F.max_pool2d(lengths, kernel_size, stride, dilation=dilation, return_indices=True)
    channels = x_BCHW.shape[1]
    pooled: Tensor = x_BCHW.flatten(2).gather(2, chosen.flatten(2).expand(-1, channels, -1)).unflatten(2, (h, w))
    return pooled


def softmax_vector_pool(
    x_BCHW: Tensor, kernel_size: int = 3, stride: int = 2, padding: int = 0, dilation: int = 1
) -> Tensor:
    """The mean of every window's vectors weighted by the softmax of their lengths (B, C, h, w).

    Memory grows with the output, not with its k x k windows.
    """
    h, w = (pooled_size(side, kernel_size, stride, padding, dilation) for side in x_BCHW.shape[2:])
    x_BCHW = F.pad(x_BCHW, (padding,) * 4)

    def shifted(map_BCHW: Tensor, place: int) -> Tensor:
        top, left = (dilation * offset for offset in divmod(place, kernel_size))
        rows = slice(top, top + stride * (h - 1) + 1, stride)
        return map_BCHW[:, :, rows, left : left + stride * (w - 1) + 1 : stride]

    with torch.no_grad():
        lengths = x_BCHW.float().norm(dim=1, keepdim=True)
        weights = torch.cat([shifted(lengths, place) for place in range(kernel_size**2)], 1).softmax(1)
    parts = (shifted(x_BCHW, place) * weights[:, place, None] for place in range(kernel_size**2))
    pooled = sum(parts, x_BCHW.new_zeros(()))
    return pooled.to(x_BCHW.dtype)


@checks_arguments
class MaxVectorPool2d(nn.Module):
    """`max_vector_pool` as a module."""

    pool = staticmethod(max_vector_pool)

    def __init__(self, kernel_size: int = 3, stride: int = 2, padding: int = 0, dilation: int = 1):
        super().__init__()
        if min(kernel_size, stride, dilation) < 1 or padding < 0:
            raise ValueError(
                f"kernel_size, stride and dilation must be at least 1 and padding at least 0, "
                f"got {kernel_size, stride, dilation} and {padding}"
            )
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w), in the dtype of the input."""
        if x_BCHW.ndim != 4:
            raise ValueError(f"vector pooling takes (B, C, H, W), got {tuple(x_BCHW.shape)}")
        return self.pool(x_BCHW, self.kernel_size, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        """The settings."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class SoftmaxVectorPool2d(MaxVectorPool2d):
    """`softmax_vector_pool` as a module."""

    pool = staticmethod(softmax_vector_pool)
