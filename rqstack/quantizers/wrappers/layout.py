"""Other input layouts: any tensor -> channels-last vectors -> quantizer -> the layout it came in.

Legend: B batch, N positions, C channels, H W image, T frames, D code depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rqstack.arguments import check_count, shown
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer
from rqstack.quantizers.wrappers.around_one import AroundOne

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
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a tensor with a batch dim and a channel dim, got {shown(x)}")
    _check_layout(layout)
    if x.ndim < 2 and layout != -1:
        raise ValueError(f"tensors need a batch dim and a channel dim, got {tuple(x.shape)}")
    if layout == "auto":
        first = x.shape[1] == channels and x.shape[-1] != channels
        layout = "channels_first" if first else "channels_last"
    dim = LAYOUTS[layout] if isinstance(layout, str) else layout
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"layout {layout!r} names dim {dim} of a tensor of shape {tuple(x.shape)}")
    if x.shape[dim] != channels:
        raise ValueError(f"dim {dim} of a tensor of shape {tuple(x.shape)} has not the {channels} channels to quantize")
    return Layout(dim % x.ndim, x.ndim)


@checks_arguments
class InLayout(AroundOne):
    """A quantizer for tensors in another layout.

    layout: 'channels_last', 'channels_first', 'auto' (see `layout_of`) or the number of the dim to quantize. The codes
    have the shape of the input without that dim, plus the code depth D at the end. A mask has the shape of the input
    without that dim. Everything else of the contract is passed on: what takes vectors takes them in the layout, and
    what gives vectors of the input's size for codes (`decode`, `decode_depth`) gives them in it; `embed_with_depth`,
    `codebook` and `targets` speak of channels-last vectors.
    """

    def __init__(self, quantizer: Quantizer, channels: int, layout: str | int = "auto"):
        _check_layout(layout)
        super().__init__(quantizer)
        self.channels, self.layout = check_count("channels", channels), layout

    def decode(self, codes: Tensor, layout: str | int | None = None) -> Tensor:
        """Codes (..., D) -> vectors in the layout; 'auto' cannot be told from codes, so `layout` must say it then."""
        dim = self._dim_of_codes(layout)
        return self.quantizer.decode(codes).movedim(-1, dim)

    def decode_depth(self, codes: Tensor, depth: int, layout: str | int | None = None) -> Tensor:
        """Codes (..., D) -> the part of one depth alone, in the layout; see `decode`."""
        dim = self._dim_of_codes(layout)
        return self.quantizer.decode_depth(codes, depth).movedim(-1, dim)

    def _inward(self, z: Tensor) -> Tensor:
        return layout_of(z, self.layout, self.channels).to_last(z)

    def _outward(self, vectors: Tensor, like: Tensor) -> Tensor:
        return layout_of(like, self.layout, self.channels).back(vectors)

    def _dim_of_codes(self, layout: str | int | None) -> int:
        layout = self.layout if layout is None else layout
        if layout == "auto":
            raise ValueError("codes do not tell their layout: give decode(codes, layout) channels_last, channels_first")
        _check_layout(layout)
        return LAYOUTS[layout] if isinstance(layout, str) else layout


def _check_layout(layout: object) -> None:
    whole = isinstance(layout, int) and not isinstance(layout, bool)
    if not whole and (not isinstance(layout, str) or layout not in ("auto", *LAYOUTS)):
        raise ValueError(f"layout {shown(layout)} is not one of auto, {', '.join(LAYOUTS)} or the number of a dim")


def mask_from_lengths(lengths_B: Tensor, num_positions: int) -> Tensor:
    """(B, N) mask that is True at the first `lengths_B[b]` positions of row b."""
    if not isinstance(lengths_B, Tensor) or lengths_B.ndim != 1:
        raise ValueError(f"lengths must be a tensor (B,) of whole numbers, got {shown(lengths_B)}")
    if not torch.compiler.is_compiling():  # there a size may be a symbol
        check_count("num_positions", num_positions, 0)
    return torch.arange(num_positions, device=lengths_B.device) < lengths_B[:, None]
