"""Between a map and its coarser scales: pooling down, interpolation up, and the convolution that follows it.

Legend: B batch, C channels, "..." grid of 1 to 3 dims (positions, image, video).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLS: dict[int, Callable[[Tensor, Any], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def scale_shapes(scales: Sequence[int | Sequence[int]], grid_dims: int) -> tuple[tuple[int, ...], ...]:
    """The grid of every scale; a number stands for a grid with equal sides.

    ValueError for no scale, sides below 1, grids of another number of dims, and a scale coarser than the one before.
    """
    if grid_dims not in POOLS:
        raise ValueError(f"grids have 1, 2 or 3 dims, got {grid_dims}")
    shapes = tuple((scale,) * grid_dims if isinstance(scale, int) else tuple(scale) for scale in scales)
    if not shapes or any(len(shape) != grid_dims or min(shape) < 1 for shape in shapes):
        raise ValueError(f"scales must be grids of {grid_dims} dims with sides of at least 1, got {list(scales)}")
    if any(a > b for coarse, fine in zip(shapes, shapes[1:]) for a, b in zip(coarse, fine)):
        raise ValueError(f"scales must not become coarser, got {list(scales)}")
    return shapes


def pool_to(x: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Means (B, C, *shape) over the cells of a coarser grid, and which cells have anything (B, *shape).

    mask (B, ...): positions that count; a cell without any has mean 0. Without a mask the second result is None.
    """
    pool = POOLS[len(shape)]
    if mask is None:
        return pool(x, shape), None
    mask = mask[:, None]
    share = pool(mask.to(x.dtype), shape)
    means = pool(torch.where(mask, x, 0.0), shape) / torch.where(share > 0, share, 1.0)
    return means, share[:, 0] > 0


def resize_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, ...) -> (B, C, *shape) by linear interpolation between cell centres; the same map where sizes agree."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    return F.interpolate(x, size=tuple(shape), mode=INTERPOLATIONS[len(shape)], align_corners=False)


class BlendedConv(nn.Module):
    """(1 - ratio) x + ratio conv(x) with a kernel of 3: what interpolation has blurred is sharpened again.

    Tian et al., Visual Autoregressive Modeling, arXiv 2404.02905, Algorithms 1 and 2.
    """

    def __init__(self, dim: int, grid_dims: int, ratio: float):
        super().__init__()
        self.conv = CONVOLUTIONS[grid_dims](dim, dim, 3, padding=1)
        self.ratio = abs(float(ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), fp32."""
        if self.ratio <= 1e-8:
            return x
        weight, bias = self.conv.weight.float(), self.conv.bias
        return x.lerp(self.conv._conv_forward(x, weight, None if bias is None else bias.float()), self.ratio)


def conv_of_scale(scale: int, num_scales: int, num_convs: int) -> int:
    """Which of fewer convolutions than scales a scale uses: spread evenly."""
    return round(scale / max(num_scales - 1, 1) * (num_convs - 1))
