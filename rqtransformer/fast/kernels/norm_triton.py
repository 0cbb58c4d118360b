"""Residual add, bias, LayerNorm or RMSNorm, and the cast to the products' type, in one GPU kernel.

The sum is made in fp32 and rounded once to the type of the residual stream; mean and variance are fp32, of the
rounded sum, and the norm is rounded once to the type asked for. The plain form rounds after every operation where
the residual stream is not fp32.

Legend: R rows, C width; c the columns of a row, padded to a power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

KNOWN_TYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
MAX_WIDTH = 8192
COLUMNS_PER_WARP = 512
MIN_WARPS, MAX_WARPS = 1, 16


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _add_and_norm_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    normed_ptr: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    SHIFT: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: one row."""
    column_c = tl.arange(0, BLOCK)
    inside_c = column_c < width
    place_c = tl.program_id(0).to(tl.int64) * width + column_c
    sum_c = tl.load(x_ptr + place_c, mask=inside_c, other=0.0).to(tl.float32)
    if BIAS:
        sum_c += tl.load(bias_ptr + column_c, mask=inside_c, other=0.0).to(tl.float32)
    if RESIDUAL:
        sum_c += tl.load(residual_ptr + place_c, mask=inside_c, other=0.0).to(tl.float32)
    if RESIDUAL or BIAS:
        rounded_c = sum_c.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place_c, rounded_c, mask=inside_c)
        sum_c = rounded_c.to(tl.float32)
    if CENTRED:
        sum_c = tl.where(inside_c, sum_c - tl.sum(sum_c, axis=0) / width, 0.0)
    normed_c = sum_c * (1.0 / tl.sqrt_rn(tl.sum(sum_c * sum_c, axis=0) / width + epsilon))
    normed_c *= tl.load(weight_ptr + column_c, mask=inside_c, other=0.0).to(tl.float32)
    if SHIFT:
        normed_c += tl.load(shift_ptr + column_c, mask=inside_c, other=0.0).to(tl.float32)
    tl.store(normed_ptr + place_c, normed_c.to(normed_ptr.dtype.element_ty), mask=inside_c)


def warps(block: int) -> int:
    """Of a program."""
    return min(MAX_WARPS, max(MIN_WARPS, block // COLUMNS_PER_WARP))


class SumAndNorm(NamedTuple):
    """What `add_and_norm` gives: both (R, C)."""

    sum: Tensor
    normed: Tensor


def serves(
    x_RC: Tensor,
    residual_RC: Tensor | None,
    bias_C: Tensor | None,
    weight_C: Tensor,
    shift_C: Tensor | None,
    dtype: torch.dtype,
) -> bool:
    """Whether `add_and_norm` knows these arguments; where it runs is `use_kernel`'s to say."""
    wide = [x_RC] if residual_RC is None else [x_RC, residual_RC]
    narrow = [weight_C, *(vector for vector in (bias_C, shift_C) if vector is not None)]
    return (
        dtype in KNOWN_TYPES
        and all(
            type(tensor) is Tensor
            and tensor.device == x_RC.device
            and tensor.dtype in KNOWN_TYPES
            and tensor.is_contiguous()
            for tensor in (*wide, *narrow)
        )
        and x_RC.dim() == 2
        and 1 <= x_RC.shape[1] <= MAX_WIDTH
        and all(tensor.shape == x_RC.shape for tensor in wide)
        and all(vector.shape == x_RC.shape[1:] for vector in narrow)
    )


def add_and_norm(
    x_RC: Tensor,
    residual_RC: Tensor | None,
    bias_C: Tensor | None,
    weight_C: Tensor,
    shift_C: Tensor | None,
    dtype: torch.dtype,
    *,
    epsilon: float,
    centred: bool,
) -> SumAndNorm:
    """x + bias + residual in the residual's type, and its norm in `dtype`.

    Without residual the sum has the type of x; with neither residual nor bias it is x itself.

    Args:
        x_RC, residual_RC: contiguous, each of its own type; so are the vectors, detached of any parameter.
        weight_C, shift_C: of the norm; a norm may have no shift.
        epsilon: of the norm, as a number: a norm whose `eps` is None has it from its number type.
        centred: LayerNorm; else RMSNorm.
    """
    rows, width = x_RC.shape
    if residual_RC is None and bias_C is None:
        sum_RC = x_RC
    else:
        sum_RC = torch.empty_like(x_RC if residual_RC is None else residual_RC)
    normed_RC = torch.empty(rows, width, dtype=dtype, device=x_RC.device)
    if rows:
        block = triton.next_power_of_2(width)
        _add_and_norm_kernel[(rows,)](
            x_RC,
            x_RC if residual_RC is None else residual_RC,
            weight_C if bias_C is None else bias_C,
            weight_C,
            weight_C if shift_C is None else shift_C,
            sum_RC,
            normed_RC,
            width,
            epsilon,
            RESIDUAL=residual_RC is not None,
            BIAS=bias_C is not None,
            SHIFT=shift_C is not None,
            CENTRED=centred,
            BLOCK=block,
            num_warps=warps(block),
        )
    return SumAndNorm(sum_RC, normed_RC)
