"""Nearest codes in one GPU kernel that keeps every distance in registers. Optional: needs Triton.

Legend: N vectors, E code-vector size, K codebook size.

Used by `nearest_codes` for CUDA tensors where the environment variable RQVAE_FUSED_SEARCH is '1'. Its results
are tested in Triton's interpreter only; it is not verified on a GPU, neither its results nor its speed, and so is off
unless asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_K, BLOCK_E = 64, 64, 32


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _nearest_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    num_vectors: tl.tensor,
    num_codes: tl.tensor,
    dim: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """One program: the codes of BLOCK_N rows. Codes are visited in order and only a lower distance replaces one."""
    row_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    best_n = tl.full((BLOCK_N,), float("inf"), tl.float32)
    found_n = tl.zeros((BLOCK_N,), tl.int64)
    for first in range(0, num_codes, BLOCK_K):
        code_k = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        product_nk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(0, dim, BLOCK_E):
            entry_e = start + tl.arange(0, BLOCK_E)
            x_mask = (row_n < num_vectors)[:, None] & (entry_e < dim)[None, :]
            weight_mask = (entry_e < dim)[:, None] & (code_k < num_codes)[None, :]
            x_ne = tl.load(x_ptr + row_n[:, None] * dim + entry_e[None, :], mask=x_mask, other=0.0)
            weight_ek = tl.load(weight_ptr + code_k[None, :] * dim + entry_e[:, None], mask=weight_mask, other=0.0)
            product_nk = tl.dot(x_ne, weight_ek, product_nk, input_precision="ieee")  # no TF32: see precision.py
        norm_k = tl.load(norm_ptr + code_k, mask=code_k < num_codes, other=float("inf"))
        value_n, index_n = tl.min(norm_k[None, :] - 2.0 * product_nk, axis=1, return_indices=True)
        closer_n = value_n < best_n
        best_n = tl.where(closer_n, value_n, best_n)
        found_n = tl.where(closer_n, first + index_n.to(tl.int64), found_n)
    tl.store(codes_ptr + row_n, found_n, mask=row_n < num_vectors)


def fused_nearest_codes(x_NE: Tensor, weight_KE: Tensor, norm_K: Tensor) -> Tensor:
    """Index of the nearest code vector of every row (int64, (N,)); the lowest index among equals.

    x, weight: fp32. norm_K: squared lengths of the code vectors. A row with a value that is not finite gets some valid
    code. Nothing but the codes is allocated where x and weight are contiguous.
    """
    x_NE, weight_KE = x_NE.contiguous(), weight_KE.contiguous()
    codes_N = torch.empty(len(x_NE), dtype=torch.int64, device=x_NE.device)
    if len(x_NE):
        grid = (triton.cdiv(len(x_NE), BLOCK_N),)
        _nearest_kernel[grid](
            x_NE,
            weight_KE,
            norm_K,
            codes_N,
            len(x_NE),
            len(weight_KE),
            x_NE.shape[1],
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            BLOCK_E=BLOCK_E,
        )
    return codes_N
