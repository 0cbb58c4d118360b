"""Where the channels and the positions of an input stand, and how to get there and back.

Legend: B batch, N positions, C channels, T best codes, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require
from rqstack.quantizers.wrappers.layout import mask_from_lengths


class TokenLayout(NamedTuple):
    """The grid of positions of a batch, () for a single token a row, and whether channels come before it."""

    batch: int
    grid: tuple[int, ...]
    channels_first: bool

    @property
    def num_positions(self) -> int:
        """N: 1 for single tokens."""
        return math.prod(self.grid)

    def to_tokens(self, x: Tensor) -> Tensor:
        """The input -> (B, N, C)."""
        x = x.movedim(1, -1) if self.channels_first else x
        return x.reshape(self.batch, self.num_positions, x.shape[-1])

    def vectors_back(self, tokens: Tensor) -> Tensor:
        """(B, N, [T,] C) -> the layout of the input; T last for channels-first inputs."""
        out = self.grid_back(tokens)
        return out.movedim(-1, 1) if self.channels_first else out

    def grid_back(self, tokens: Tensor) -> Tensor:
        """(B, N, ...) -> (B, *grid, ...)."""
        return tokens.reshape(self.batch, *self.grid, *tokens.shape[2:])

    def flatten(self, grid: Tensor) -> Tensor:
        """(B, *grid, ...) -> (B, N, ...); (B, N, ...) stays."""
        if grid.shape[: 1 + len(self.grid)] == (self.batch, *self.grid):
            return grid.reshape(self.batch, self.num_positions, *grid.shape[1 + len(self.grid) :])
        return grid


def token_layout(x: Tensor, channels_first: bool, map_dims: int | None) -> TokenLayout:
    """The layout of x (B, C), (B, N, C), (B, H, W, C), or with the channels second; map_dims: required number of grid
    dims (2 image, 3 video). A row of channels alone has no order."""
    if map_dims is not None:
        require(x.ndim == map_dims + 2, f"a {map_dims}-dim map comes as {map_dims + 2} dims, got {tuple(x.shape)}")
    require(x.ndim >= 2, f"input needs a batch dim and a channel dim, got {tuple(x.shape)}")
    first = channels_first and x.ndim > 2
    grid = x.shape[2:] if first else x.shape[1:-1]
    return TokenLayout(x.shape[0], tuple(grid), first)


def mask_of_samples(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """One entry per sample (B,) -> the same at all its positions (B, *grid); other masks as they are, as bool."""
    mask = mask.bool()
    return mask.view(-1, *[1] * len(grid)).expand(-1, *grid) if mask.ndim == 1 and len(grid) else mask


def mask_of(layout: TokenLayout, mask: Tensor | None, lens: Tensor | None, is_map: bool) -> Tensor | None:
    """(B, N) mask from a mask (B, *grid), from one entry per sample (B,), or from lengths (B,)."""
    if mask is None and lens is None:
        return None
    require(mask is None or lens is None, "give mask or lens, not both")
    if mask is not None and mask.shape == (layout.batch,):
        return mask_of_samples(mask, (layout.num_positions,))
    require(
        not is_map and bool(layout.grid),
        "mask and lens are for sequences; of maps and single tokens a mask has one entry per sample",
    )
    if mask is None:
        return None if lens is None else mask_from_lengths(lens, layout.num_positions)
    mask = layout.flatten(mask)
    expected = (layout.batch, layout.num_positions)
    require(mask.shape == expected, f"mask of shape {tuple(mask.shape)} does not fit {expected} positions")
    return mask.bool()
