"""What quantizers are given: sizes, shares, vectors, masks and codes, each refused in one line that says what is valid.

Legend: B batch, D code depth, E size of a vector, K codebook size.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.precision import without_masked_nonfinite

SHOWN = 80  # characters of a value in a message


def shown(value: Any) -> str:
    """A value for a message: one line, not long; of a tensor its type and shape."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    text = " ".join(repr(value).split())
    if " at 0x" in text or (type(value).__module__ == "numpy" and not isinstance(value, numbers.Number)):
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """ValueError unless it is a whole number in range."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {shown(value)}")
    return int(value)


def check_counts(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """ValueError unless it is a sequence of whole numbers in range, with at least one of them."""
    if isinstance(values, (str, bytes, Tensor)) or not isinstance(values, Sequence) or not len(values):
        raise ValueError(f"{name} must be one or more whole numbers of at least {least}, got {shown(values)}")
    return tuple(check_count(f"every number of {name}", value, least) for value in values)


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False, below: bool = False
) -> float:
    """ValueError unless it is a finite number in range; above, below: the limits themselves are not."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and (value > least if above else value >= least) and (value < most if below else value <= most):
        return float(value)
    low = "" if least == -math.inf else f" {'above' if above else 'of at least'} {least:g}"
    high = "" if most == math.inf else f"{' and' if low else ''} {'below' if below else 'at most'} {most:g}"
    raise ValueError(f"{name} must be a number{low}{high}, got {shown(value)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError where the value is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} {shown(value)} is not one of {', '.join(choices)}")


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
