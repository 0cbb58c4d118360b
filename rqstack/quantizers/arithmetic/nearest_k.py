"""The k nearest code vectors of every vector, without an N x K matrix.

Legend: N vectors, E code-vector size, K codebook size, k codes per vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.nearest import rows_per_chunk
from rqstack.quantizers.arithmetic.precision import full_precision_matmul


class TopCodes(NamedTuple):
    """k candidates per vector, the nearest first.

    vectors: code vectors (..., k, E), with the gradient of a learned codebook. codes: int64 (..., k). distances:
    squared distances (..., k), fp32.
    """

    vectors: Tensor
    codes: Tensor
    distances: Tensor


@torch.no_grad()
def nearest_k(x_NE: Tensor, weight_KE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes (N, k) of the nearest code vectors and their squared distances (N, k), ascending; fp32 arithmetic.

    Which of several equally distant codes come first, or at all, is not defined. ValueError unless 1 <= k <= K.
    """
    num_codes = len(weight_KE)
    if not 1 <= k <= num_codes:
        raise ValueError(f"top {k} codes of a codebook of {num_codes}: choose 1 to {num_codes}")
    x_NE, weight_KE = x_NE.float(), weight_KE.float()
    norm_K = weight_KE.square().sum(1)
    codes_Nk = torch.empty(len(x_NE), k, dtype=torch.int64, device=x_NE.device)
    chunk = min(rows_per_chunk(num_codes, x_NE.device), max(1, len(x_NE)))
    scratch = x_NE.new_empty((chunk, num_codes))
    with full_precision_matmul(x_NE.device):
        for start in range(0, len(x_NE), chunk):
            part = x_NE[start : start + chunk]
            distance = torch.addmm(norm_K, part, weight_KE.T, alpha=-2, out=scratch[: len(part)])
            codes_Nk[start : start + chunk] = distance.topk(k, dim=1, largest=False).indices
    return codes_Nk, _squared_distances(x_NE, weight_KE, codes_Nk)


def _squared_distances(x_NE: Tensor, weight_KE: Tensor, codes_Nk: Tensor) -> Tensor:
    """From the differences, one candidate at a time: |x|^2 - 2 x e + |e|^2 cancels where a vector is near its code."""
    columns = [(x_NE - weight_KE[codes_N]).square().sum(1) for codes_N in codes_Nk.unbind(1)]
    return torch.stack(columns, 1)
