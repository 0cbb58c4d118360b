"""Latent quantization: every scalar has a small codebook of learned values of its own.

Legend: N vectors, D codebooks side by side, C scalars of a code vector, L values of one scalar.

Hsu et al., Disentanglement via Latent Quantization, NeurIPS 2023 (arXiv 2305.18378).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from rqvae.quantizers.implicit import ImplicitQuantizer, mean_square
from rqvae.quantizers.mixed_radix import check_levels


class LatentQuantizer(ImplicitQuantizer):
    """Every scalar takes the nearest of its L learned values; K is the product of the levels.

    dim: E; projected to `num_codebooks` x `len(levels)` scalars where it differs. The values, shared by the codebooks
    side by side, are fp32 parameters and start evenly in [-0.5, 0.5]. Terms of the loss: quantization =
    quantization_weight x mean squared distance, pulls the values; commitment = commitment_weight x the same, pulls the
    input. The first level varies fastest in a code. ValueError for levels below 2 and negative weights.
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        num_codebooks: int = 1,
        commitment_weight: float = 0.1,
        quantization_weight: float = 0.1,
        project: bool | None = None,
    ):
        check_levels(levels)
        if min(commitment_weight, quantization_weight) < 0:
            raise ValueError(f"weights must not be negative, got {commitment_weight} and {quantization_weight}")
        super().__init__(dim, len(levels), math.prod(levels), num_codebooks, project)
        self.levels = tuple(levels)
        self.commitment_weight, self.quantization_weight = commitment_weight, quantization_weight
        self.values = nn.ParameterList([initial_values(level) for level in levels])

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes_ND = torch.zeros(x_NDC.shape[:-1], dtype=torch.int64, device=x_NDC.device)
        stride = 1
        for values, x_ND in zip(self.values, x_NDC.detach().unbind(-1), strict=True):
            codes_ND += stride * nearest_scalars(x_ND, values.detach().float())
            stride *= len(values)
        return x_NDC, codes_ND

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        scalars = []
        for values in self.values:
            scalars.append(values.float()[codes_ND % len(values)])
            codes_ND = codes_ND // len(values)
        return torch.stack(scalars, -1)

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        quantization = mean_square(vectors_NDC - space_NDC.detach(), mask_N)
        commitment = mean_square(space_NDC - vectors_NDC.detach(), mask_N)
        return {
            "quantization": self.quantization_weight * quantization,
            "commitment": self.commitment_weight * commitment,
        }


def initial_values(level: int) -> nn.Parameter:
    """L even steps: from -0.5 to 0.5 for odd L, from -0.5 to just below 0.5 (so that 0 is one of them) for even L."""
    steps = torch.arange(level, dtype=torch.float32)
    return nn.Parameter(steps / (level - level % 2) - 0.5)


@torch.no_grad()
def nearest_scalars(x: torch.Tensor, values_L: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of L values for every scalar; a binary search, so nothing grows with N x L."""
    ordered_L, order_L = values_L.sort(stable=True)
    middles = (ordered_L[1:] + ordered_L[:-1]) / 2
    return order_L[torch.bucketize(x.contiguous(), middles)]
