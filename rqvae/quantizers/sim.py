"""SimVQ: a frozen random codebook seen through one learned linear map, so that every code moves with every step.

Legend: N vectors, D codebooks side by side, C size of a code vector, K codebook size.

Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024 (2411.02038).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rqvae.quantizers.distance import nearest_codes
from rqvae.quantizers.implicit import ImplicitQuantizer, KeepsFloat32, mean_square


class SimQuantizer(KeepsFloat32, ImplicitQuantizer):
    """Nearest vectors in `frozen @ map.T`, whose K rows all change when the map learns.

    dim: E, split into `num_codebooks` parts of equal size that share the codebook. Terms of the loss: codebook =
    codebook_weight x mean squared distance, pulls the mapped codes; commitment = commitment_weight x the same, pulls
    the input. ValueError where dim is no multiple of num_codebooks and for other wrong options.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_codebooks: int = 1,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
    ):
        if codebook_size < 1:
            raise ValueError(f"codebook size must be at least 1, got {codebook_size}")
        if num_codebooks < 1 or dim % num_codebooks:
            raise ValueError(f"dim {dim} is not a multiple of num_codebooks {num_codebooks}")
        if min(codebook_weight, commitment_weight) < 0:
            raise ValueError(f"weights must not be negative, got {codebook_weight} and {commitment_weight}")
        code_dim = dim // num_codebooks
        super().__init__(dim, code_dim, codebook_size, num_codebooks)
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.map = nn.Linear(code_dim, code_dim, bias=False)
        self.register_buffer("frozen", torch.randn(codebook_size, code_dim) * code_dim**-0.5)

    def codebook(self, depth: int) -> torch.Tensor:
        """The (K, C) mapped code vectors, fp32, differentiable in the map; the same at every depth."""
        return F.linear(self.frozen, self.map.weight.float())

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = nearest_codes(x_NDC.detach().flatten(0, 1), self.codebook(0).detach())
        return x_NDC, codes.view(x_NDC.shape[:-1])

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes_ND, self.codebook(0))

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        return {
            "codebook": self.codebook_weight * mean_square(vectors_NDC - space_NDC.detach(), mask_N),
            "commitment": self.commitment_weight * mean_square(space_NDC - vectors_NDC.detach(), mask_N),
        }
