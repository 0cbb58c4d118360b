"""Channels second or last: how the scalar quantizers read their input.

Legend: B batch, C channels, c codebooks side by side, d scalars of a code vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require

MAP_DIMS = 4  # inputs with as many dims are images or video, channels second


def channels_last(x: Tensor, first: bool, dim: int) -> Tensor:
    """(B, C, ...) -> (B, ..., C) where the channels come `first`; they must be `dim`."""
    x = x.movedim(1, -1) if first else x
    require(x.shape[-1] == dim, f"vectors have {x.shape[-1]} channels, the quantizer takes {dim}")
    return x


def channels_back(x: Tensor, first: bool) -> Tensor:
    """(B, ..., C) -> (B, C, ...) where the channels come `first`."""
    return x.movedim(-1, 1) if first else x


def index_type(codebook_size: int) -> torch.dtype:
    """int32 as long as it can count the codes."""
    return torch.int32 if codebook_size <= 2**31 else torch.int64
