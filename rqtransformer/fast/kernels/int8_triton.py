"""A product of few rows with int8 weights in one GPU kernel: the weights are read once, as int8.

The plain form expands the whole weight at every product, which costs more than it saves. Here the weights become
numbers of the activations' type in registers (all of -127 .. 127 are exact in it), sums are fp32, and the scale of an
output comes last. A row's sums run in one order whatever the number of rows.

With many rows the product no longer waits for its weights: those are left to the plain form.

Legend: R rows, I input features, O output features; r, i, o blocks of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KNOWN_TYPES = frozenset({torch.bfloat16, torch.float16})
MAX_ROWS = 64
BLOCK_R, BLOCK_O, BLOCK_I = 16, 16, 128


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _product_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    """One program: some outputs of some rows."""
    row_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    output_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    weight_row_o = output_o.to(tl.int64) * inputs
    sum_ro = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    for start in range(0, inputs, BLOCK_I):
        input_i = start + tl.arange(0, BLOCK_I)
        inside_ri = (row_r < rows)[:, None] & (input_i < inputs)[None, :]
        inside_io = (input_i < inputs)[:, None] & (output_o < outputs)[None, :]
        x_ri = tl.load(x_ptr + row_r[:, None] * inputs + input_i[None, :], mask=inside_ri, other=0.0)
        weight_io = tl.load(weight_ptr + weight_row_o[None, :] + input_i[:, None], mask=inside_io, other=0)
        sum_ro = tl.dot(x_ri, weight_io.to(x_ri.dtype), sum_ro)
    scale_o = tl.load(scale_ptr + output_o, mask=output_o < outputs, other=0.0).to(tl.float32)
    out_ro = (sum_ro * scale_o[None, :]).to(out_ptr.dtype.element_ty)
    inside_ro = (row_r < rows)[:, None] & (output_o < outputs)[None, :]
    tl.store(out_ptr + row_r[:, None] * outputs + output_o[None, :], out_ro, mask=inside_ro)


def serves(x_RI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> bool:
    """Whether `product` knows these arguments; where it runs is `use_kernel`'s to say."""
    return (
        all(
            type(tensor) is Tensor and tensor.device == x_RI.device and tensor.is_contiguous()
            for tensor in (x_RI, weight_OI, scale_O)
        )
        and x_RI.dtype in KNOWN_TYPES
        and scale_O.dtype == x_RI.dtype
        and weight_OI.dtype == torch.int8
        and x_RI.dim() == weight_OI.dim() == 2
        and 1 <= len(x_RI) <= MAX_ROWS
        and x_RI.shape[1] == weight_OI.shape[1] >= 1
        and scale_O.shape == weight_OI.shape[:1]
    )


def product(x_RI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x @ (weight * scale).T, (R, O), in the type of x.

    Args: all contiguous; x and scale of one type, the weight int8.
    """
    (rows, inputs), outputs = x_RI.shape, len(weight_OI)
    out_RO = torch.empty(rows, outputs, dtype=x_RI.dtype, device=x_RI.device)
    _product_kernel[(triton.cdiv(outputs, BLOCK_O), triton.cdiv(rows, BLOCK_R))](
        x_RI, weight_OI, scale_O, out_RO, rows, inputs, outputs, BLOCK_R, BLOCK_O, BLOCK_I, num_warps=4
    )
    return out_RO
