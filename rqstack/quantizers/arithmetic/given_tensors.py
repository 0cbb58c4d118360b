"""Tensors that quantizers are given: vectors, masks and codes, each refused in one line that says what is valid.

Legend: B batch, D code depth, E size of a vector, K codebook size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.arguments import shown
from rqstack.quantizers.arithmetic.precision import without_masked_nonfinite


def check_vectors(z: Any, dim: int) -> None:
    """ValueError or TypeError unless it is a tensor (..., E) of real numbers."""
    if not isinstance(z, Tensor):
        raise TypeError(f"vectors must be a tensor (..., {dim}), got {shown(z)}")
    if not z.is_floating_point():
        raise ValueError(f"vectors must be floating-point numbers, got {shown(z)}")
    if z.ndim < 1 or z.shape[-1] != dim:
        last = f"{z.shape[-1]} channels in their last dim" if z.ndim else "no dims"
        raise ValueError(f"vectors have {last}; the quantizer takes {dim}")


def check_mask(mask: Any, grid: Sequence[int]) -> None:
    """ValueError or TypeError unless it is a boolean tensor of the shape of the grid, or None."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean tensor {tuple(grid)}, got {shown(mask)}")
    if mask.dtype != torch.bool or mask.shape != torch.Size(grid):
        raise ValueError(f"mask must be a boolean tensor {tuple(grid)}, one entry per position, got {shown(mask)}")


def checked_input(z: Any, mask: Any, dim: int) -> Tensor:
    """The vectors (..., E), with zeros for what is not finite at positions that the mask leaves out, if there is one.

    ValueError or TypeError as of `check_vectors` and `check_mask`.
    """
    check_vectors(z, dim)
    check_mask(mask, z.shape[:-1])
    return z if mask is None else without_masked_nonfinite(z, mask)


def checked_codes(codes: Any, sizes: Sequence[int], dropped: bool = False) -> Tensor:
    """Codes (..., D), or the first of the D, as int64.

    Args:
        sizes: K of every depth.
        dropped: negative codes stand for dropped levels.

    On a CPU a code out of range is a ValueError with its value. On a GPU that would make the host wait; there the
    device checks, and the error comes with the next synchronisation, as that of an index out of range does. Compiled
    code does not check.

    Raises:
        TypeError, ValueError: no tensor, no whole numbers, another number of depths, a code out of range.
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"codes must be a tensor (..., {len(sizes)}) of whole numbers, got {shown(codes)}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be whole numbers (int64), got {shown(codes)}")
    depth = codes.shape[-1] if codes.ndim else 0
    if not 1 <= depth <= len(sizes):
        raise ValueError(f"codes have {depth} depths in their last dim; the quantizer has {len(sizes)}")
    codes = codes.long()
    if not torch.compiler.is_compiling() and codes.numel() and codes.device.type in ("cpu", "cuda"):
        _check_range(codes, sizes[:depth], dropped)
    return codes


def _check_range(codes: Tensor, sizes: Sequence[int], dropped: bool) -> None:
    """Depths of one size in a row are looked at together."""
    start = 0
    for size, run in itertools.groupby(sizes):
        stop = start + len(list(run))
        part = codes if len(sizes) == stop - start else codes[..., start:stop]
        start = stop
        if codes.is_cuda:
            wrong = part >= size if dropped else (part >= size) | (part < 0)
            torch._assert_async(~wrong.any(), f"a code is not in 0 .. {size - 1}")
            continue
        lowest, highest = (int(end) for end in part.aminmax())
        if highest >= size or (lowest < 0 and not dropped):
            wrong_code = highest if highest >= size else lowest
            raise ValueError(f"code {wrong_code} is not in 0 .. {size - 1}, the codes of this quantizer")
