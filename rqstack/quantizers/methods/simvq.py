"""SimVQ: a frozen random codebook seen through one learned linear map, so that every code moves with every step.

Legend: N vectors, D codebooks side by side, C size of a code vector, F size of a frozen vector, K codebook size.

Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024 (2411.02038).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.precision import KeepsFloat32
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer


class SimQuantizer(KeepsFloat32, SideBySideQuantizer):
    """Nearest vectors in `frozen @ map.T`, whose K rows all change when the map learns.

    dim: E, split into `num_codebooks` parts of equal size C that share the codebook. codebook_dim: F, default C.
    transform: a module (K, F) -> (K, C) in place of the linear map; it must treat every row alike. Terms of the loss:
    codebook = codebook_weight x mean squared distance, pulls the mapped codes; commitment = commitment_weight x the
    same, pulls the input. estimator: 'straight_through', 'rotation' or 'directional'. ValueError where dim is no
    multiple of num_codebooks and for other wrong options.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_codebooks: int = 1,
        codebook_dim: int | None = None,
        transform: nn.Module | None = None,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        estimator: str = "straight_through",
    ):
        if codebook_size < 1:
            raise ValueError(f"codebook size must be at least 1, got {codebook_size}")
        if num_codebooks < 1 or dim % num_codebooks:
            raise ValueError(f"dim {dim} is not a multiple of num_codebooks {num_codebooks}")
        if min(codebook_weight, commitment_weight) < 0:
            raise ValueError(f"weights must not be negative, got {codebook_weight} and {commitment_weight}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
        code_dim = dim // num_codebooks
        codebook_dim = code_dim if codebook_dim is None else codebook_dim
        super().__init__(dim, code_dim, codebook_size, num_codebooks)
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.estimator = estimator
        self.register_buffer("frozen", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.map = nn.Linear(codebook_dim, code_dim, bias=False) if transform is None else transform

    def codebook(self, depth: int) -> torch.Tensor:
        """The (K, C) mapped code vectors, fp32, differentiable in the map; the same at every depth."""
        return mapped_codebook(self.map, self.frozen, self.code_dim)

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x_NDC, self._nearest(x_NDC, self.codebook(0))

    def _quantize(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight_KC = self.codebook(0)
        codes_ND = self._nearest(x_NDC, weight_KC)
        return x_NDC, F.embedding(codes_ND, weight_KC), codes_ND

    def _nearest(self, x_NDC: torch.Tensor, weight_KC: torch.Tensor) -> torch.Tensor:
        return nearest_codes(x_NDC.detach().flatten(0, 1), weight_KC.detach()).view(x_NDC.shape[:-1])

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes_ND, self.codebook(0))

    def _estimate(self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor) -> torch.Tensor:
        return ESTIMATORS[self.estimator](space_NDC, vectors_NDC)

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        space_NE, vectors_NE = space_NDC.flatten(1), vectors_NDC.flatten(1)
        return {
            "codebook": self.codebook_weight * mean_square(vectors_NE, space_NE.detach(), mask_N),
            "commitment": self.commitment_weight * mean_square(space_NE, vectors_NE.detach(), mask_N),
        }


def mapped_codebook(transform: nn.Module, frozen_KF: torch.Tensor, code_dim: int) -> torch.Tensor:
    """The frozen vectors through the learned map (K, C), in fp32 whatever type its weights were cast to.

    ValueError where the map does not give vectors of size C.
    """
    weights = {name: parameter.float() for name, parameter in transform.named_parameters()}
    state = {name: buffer.float() for name, buffer in transform.named_buffers() if buffer.is_floating_point()}
    weight_KC = torch.func.functional_call(transform, {**state, **weights}, (frozen_KF.float(),))
    if weight_KC.shape != (len(frozen_KF), code_dim):
        raise ValueError(
            f"the codebook transform gives {tuple(weight_KC.shape)} instead of {(len(frozen_KF), code_dim)}"
        )
    return weight_KC
