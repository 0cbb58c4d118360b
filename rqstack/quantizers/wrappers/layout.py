"""Other input layouts: any tensor -> channels-last vectors -> quantizer -> the layout it came in.

Legend: B batch, N positions, C channels, H W image, T frames, D code depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rqstack.quantizers.base import Quantizer, QuantizerOutput

LAYOUTS = {
    "channels_last": -1,  # (B, N, C), (B, H, W, C), (B, C): a single token per row
    "channels_first": 1,  # (B, C, N), (B, C, H, W), (B, C, T, H, W)
}


class Layout(NamedTuple):
    """Where the quantized dim of a tensor stood."""

    dim: int
    ndim: int

    def to_last(self, x: Tensor) -> Tensor:
        """The quantized dim moved to the end, the others in order."""
        return x.movedim(self.dim, -1)

    def back(self, x: Tensor) -> Tensor:
        """The last dim moved back to where it stood."""
        return x.movedim(-1, self.dim)


def layout_of(x: Tensor, layout: str | int, channels: int) -> Layout:
    """The layout of a tensor by name or by the quantized dim.

    'auto' takes the second dim if it alone has `channels` entries, otherwise the last. ValueError for an unknown name,
    a dim that does not exist, or one that has not `channels` entries.
    """
    if x.ndim < 2 and layout != -1:
        raise ValueError(f"tensors need a batch dim and a channel dim, got {tuple(x.shape)}")
    if layout == "auto":
        first = x.shape[1] == channels and x.shape[-1] != channels
        layout = "channels_first" if first else "channels_last"
    if isinstance(layout, str) and layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of auto, {', '.join(LAYOUTS)} or the number of a dim")
    dim = LAYOUTS[layout] if isinstance(layout, str) else layout
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"layout {layout!r} names dim {dim} of a tensor of shape {tuple(x.shape)}")
    if x.shape[dim] != channels:
        raise ValueError(f"dim {dim} of a tensor of shape {tuple(x.shape)} has not the {channels} channels to quantize")
    return Layout(dim % x.ndim, x.ndim)


class InLayout(nn.Module):
    """A quantizer for tensors in another layout.

    layout: 'channels_last', 'channels_first', 'auto' (see `layout_of`) or the number of the dim to quantize. The codes
    have the shape of the input without that dim, plus the code depth D at the end. A mask has the shape of the input
    without that dim.
    """

    def __init__(self, quantizer: Quantizer, channels: int, layout: str | int = "auto"):
        super().__init__()
        if isinstance(layout, str) and layout not in ("auto", *LAYOUTS):
            raise ValueError(f"layout {layout!r} is not one of auto, {', '.join(LAYOUTS)} or the number of a dim")
        self.quantizer, self.channels, self.layout = quantizer, channels, layout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize a tensor in its layout; `quantized` has the same one."""
        layout = layout_of(x, self.layout, self.channels)
        out = self.quantizer(layout.to_last(x), mask)
        return out._replace(quantized=layout.back(out.quantized))

    def decode(self, codes: Tensor, layout: str | int | None = None) -> Tensor:
        """Codes (..., D) -> vectors in the layout; 'auto' cannot be told from codes, so `layout` must say it then."""
        layout = self.layout if layout is None else layout
        if layout == "auto":
            raise ValueError("codes do not tell their layout: give decode(codes, layout) channels_last, channels_first")
        vectors = self.quantizer.decode(codes)
        return vectors.movedim(-1, LAYOUTS[layout] if isinstance(layout, str) else layout)


def mask_from_lengths(lengths_B: Tensor, num_positions: int) -> Tensor:
    """(B, N) mask that is True at the first `lengths_B[b]` positions of row b."""
    return torch.arange(num_positions, device=lengths_B.device) < lengths_B[:, None]
