"""Nearest codes in one GPU kernel that keeps every distance in registers. Optional: needs Triton.

The codes are split among programs where the rows alone would not fill the GPU. Each program sends its best distance and
code, packed into one integer, through an atomic minimum: the order of arrival does not matter, and of equal distances
the lowest index stays.

Products are fp32 ('ieee'), or each is three of TF32 ('tf32x3'), which run on the tensor cores. Emulated on a CPU, with
2048 codes, the largest error of a distance (up to 450) against fp64 is 1e-4 against 4e-5 of 'ieee' for vectors of 64
numbers, 9e-4 against 2e-4 for 256; no code of 2,000 vectors differed. A code can differ from the plain search's only
where two distances lie as close as that, with either. TF32 alone errs by 0.1 to 0.5 and is not offered.

Legend: N vectors, E code-vector size, K codebook size.

Used by `nearest_codes` for CUDA tensors where the environment variable RQVAE_FUSED_SEARCH says so. Its results are
tested in Triton's interpreter only; it is not verified on a GPU, neither its results nor its speed, and so is off
unless asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_K, BLOCK_E = 64, 64, 32
PRECISIONS = ("ieee", "tf32x3")
PROGRAMS_PER_PROCESSOR = 2
NUM_STAGES = 2  # tiles on their way at a time: three take more shared memory than every GPU grants unasked


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _nearest_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    num_vectors: tl.tensor,
    num_codes: tl.tensor,
    dim: tl.tensor,
    codes_per_program: tl.tensor,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """One program: BLOCK_N rows and a share of the codes, in order; only a lower distance replaces a code."""
    row_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    best_n = tl.full((BLOCK_N,), float("inf"), tl.float32)
    found_n = tl.zeros((BLOCK_N,), tl.int64)
    share = tl.program_id(1) * codes_per_program
    for first in range(share, tl.minimum(share + codes_per_program, num_codes), BLOCK_K):
        code_k = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        product_nk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(0, dim, BLOCK_E):
            entry_e = start + tl.arange(0, BLOCK_E)
            x_mask = (row_n < num_vectors)[:, None] & (entry_e < dim)[None, :]
            weight_mask = (entry_e < dim)[:, None] & (code_k < num_codes)[None, :]
            x_ne = tl.load(x_ptr + row_n[:, None] * dim + entry_e[None, :], mask=x_mask, other=0.0)
            weight_ek = tl.load(weight_ptr + code_k[None, :] * dim + entry_e[:, None], mask=weight_mask, other=0.0)
            product_nk = tl.dot(x_ne, weight_ek, product_nk, input_precision=PRECISION)
        norm_k = tl.load(norm_ptr + code_k, mask=code_k < num_codes, other=float("inf"))
        value_n, index_n = tl.min(norm_k[None, :] - 2.0 * product_nk, axis=1, return_indices=True)
        closer_n = value_n < best_n
        best_n = tl.where(closer_n, value_n, best_n)
        found_n = tl.where(closer_n, first + index_n.to(tl.int64), found_n)
    best_n = tl.where(best_n == 0.0, 0.0, best_n)  # -0 is 0
    bits_n = best_n.to(tl.int32, bitcast=True)
    order_n = tl.where(bits_n < 0, bits_n ^ 0x7FFFFFFF, bits_n).to(tl.int64)
    tl.atomic_min(packed_ptr + row_n, (order_n << 32) | found_n, mask=row_n < num_vectors)


def fused_nearest_codes(x_NE: Tensor, weight_KE: Tensor, norm_K: Tensor, precision: str = "ieee") -> Tensor:
    """Index of the nearest code vector of every row (int64, (N,)); the lowest index among equals.

    Nothing but N integers is allocated where x and weight are contiguous. A row with a value that is not finite gets
    some valid code.

    Args:
        x_NE, weight_KE: fp32.
        norm_K: squared lengths of the code vectors.
        precision: of the products, one of `PRECISIONS`.
    """
    x_NE, weight_KE = x_NE.contiguous(), weight_KE.contiguous()
    packed_N = torch.full((len(x_NE),), torch.iinfo(torch.int64).max, device=x_NE.device)
    if len(x_NE):
        row_blocks, share = split(len(x_NE), len(weight_KE), _processors(x_NE.device))
        _nearest_kernel[(row_blocks, triton.cdiv(len(weight_KE), share))](
            x_NE,
            weight_KE,
            norm_K,
            packed_N,
            len(x_NE),
            len(weight_KE),
            x_NE.shape[1],
            share,
            PRECISION=precision,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            BLOCK_E=BLOCK_E,
            num_stages=NUM_STAGES,
        )
    return packed_N.bitwise_and_(2**32 - 1)


def split(num_vectors: int, num_codes: int, processors: int) -> tuple[int, int]:
    """Blocks of rows, and the codes of one program: as many programs as keep that many processors busy."""
    row_blocks, code_blocks = triton.cdiv(num_vectors, BLOCK_N), triton.cdiv(num_codes, BLOCK_K)
    parts = min(code_blocks, triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, row_blocks))
    return row_blocks, triton.cdiv(code_blocks, parts) * BLOCK_K


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
