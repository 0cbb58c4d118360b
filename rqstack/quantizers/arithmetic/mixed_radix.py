"""One whole number per code vector from one digit per scalar: the codes of the quantizers with levels.

Legend: M code vectors, C scalars of a code vector (one per level), K number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rqstack.arguments import check_counts, shown
from rqstack.quantizers.arithmetic.precision import full_precision

EXACT_FLOAT32 = 2**24  # whole numbers below are exact in fp32, so a matrix product may add them up


class MixedRadix(nn.Module):
    """Digits (C, M), each from 0 to its level - 1 <-> codes (M,) below K, the product of the levels.

    The first level varies fastest. Scalars come first because sums and products with one constant per scalar are then
    sweeps over M numbers. ValueError for levels below 2 and for more codes than 63 bits can count, unless `counted` is
    False: there are digits without codes then.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int], counted: bool = True):
        super().__init__()
        check_levels(levels, counted)
        self.num_codes = math.prod(levels)
        strides = [math.prod(levels[:i]) if counted else 0 for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def codes(self, digits_CM: Tensor) -> Tensor:
        """Digits of any dtype, whole numbers in range -> int64 codes."""
        if self.num_codes <= EXACT_FLOAT32:
            with full_precision(digits_CM.device):
                return (self.strides.float() @ digits_CM.float()).long()
        return (digits_CM.long() * self.strides[:, None]).sum(0)

    def digits(self, codes_M: Tensor) -> Tensor:
        """Codes -> int64 digits (C, M)."""
        return codes_M // self.strides[:, None] % self.levels[:, None]


def check_levels(levels: Sequence[int], counted: bool = True) -> None:
    """ValueError unless there is at least one level, all are whole numbers from 2 on, and codes fit 63 bits."""
    check_counts("levels", levels, least=2)
    if counted and math.prod(levels) >= 2**63:
        raise ValueError(f"levels {shown(list(levels))} have more codes than fit 63 bits; use several codebooks")


def scalars_first(x_NDC: Tensor) -> Tensor:
    """(N, D, C) -> (C, N * D), contiguous."""
    return x_NDC.reshape(-1, x_NDC.shape[-1]).T.contiguous()


def scalars_last(x_CM: Tensor, shape: Sequence[int]) -> Tensor:
    """(C, N * D) -> (N, D, C), the inverse of `scalars_first`; `shape` is (N, D)."""
    return x_CM.T.reshape(*shape, len(x_CM))
