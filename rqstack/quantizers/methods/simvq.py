"""SimVQ: a frozen random codebook seen through one learned linear map, so that every code moves with every step.

Legend: N vectors, D codebooks side by side, C size of a code vector, F size of a frozen vector, K codebook size.

Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024 (2411.02038).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_choice, check_count, check_number
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.precision import KeepsFloat32
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.residual_stack import ResidualStack, StackOptions
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer


@dataclass(frozen=True)
class SimLevelOptions:
    """Settings of a SimVQ level. ValueError for negative weights.

    Attributes:
        codebook_dim: F, size of the frozen vectors. null: C.
        codebook_weight: of the half of the loss that pulls the code vectors.
        commitment_weight: of the half that pulls the input.
    """

    codebook_dim: int | None = None
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def __post_init__(self) -> None:
        for name in ("codebook_weight", "commitment_weight"):
            check_number(name, getattr(self, name), 0)


@checks_arguments
@dataclass(frozen=True)
class SimOptions(SimLevelOptions):
    """Those of a level, and how gradients pass.

    Attributes:
        estimator: 'straight_through', 'rotation' or 'directional'.
    """

    estimator: str = "straight_through"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("estimator", self.estimator, tuple(ESTIMATORS))


@checks_arguments
class SimQuantizer(KeepsFloat32, SideBySideQuantizer):
    """Nearest vectors in `frozen @ map.T`, whose K rows all change when the map learns.

    dim: E, split into `num_codebooks` parts of equal size C that share the codebook. transform: a module
    (K, F) -> (K, C) in place of the linear map; it must treat every row alike. Terms of the loss:
    codebook = codebook_weight x mean squared distance, pulls the mapped codes; commitment = commitment_weight x the
    same, pulls the input. ValueError where dim is no multiple of num_codebooks.
    """

    frozen: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        options: SimOptions | None = None,
        *,
        num_codebooks: int = 1,
        transform: nn.Module | None = None,
    ):
        for name, size in (("dim", dim), ("codebook_size", codebook_size), ("num_codebooks", num_codebooks)):
            check_count(name, size)
        if dim % num_codebooks:
            raise ValueError(f"dim {dim} is not a multiple of num_codebooks {num_codebooks}")
        options = SimOptions() if options is None else options
        code_dim = dim // num_codebooks
        frozen_dim = code_dim if options.codebook_dim is None else check_count("codebook_dim", options.codebook_dim)
        super().__init__(dim, code_dim, codebook_size, num_codebooks)
        self.options = options
        self.register_buffer("frozen", torch.randn(codebook_size, frozen_dim) * frozen_dim**-0.5)
        self.map = nn.Linear(frozen_dim, code_dim, bias=False) if transform is None else transform

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) mapped code vectors, fp32, differentiable in the map; the same at every depth."""
        return mapped_codebook(self.map, self.frozen, self.code_dim)

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        return x_NDC, self._nearest(x_NDC, self.codebook(0))

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_KC = self.codebook(0)
        codes_ND = self._nearest(x_NDC, weight_KC)
        return x_NDC, F.embedding(codes_ND, weight_KC), codes_ND

    def _nearest(self, x_NDC: Tensor, weight_KC: Tensor) -> Tensor:
        return nearest_codes(x_NDC.detach().flatten(0, 1), weight_KC.detach()).view(x_NDC.shape[:-1])

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        return F.embedding(codes_ND, self.codebook(0))

    def _estimate(self, space_NDC: Tensor, vectors_NDC: Tensor) -> Tensor:
        return ESTIMATORS[self.options.estimator](space_NDC, vectors_NDC)

    def _terms(self, space_NDC: Tensor, vectors_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        space_NE, vectors_NE = space_NDC.flatten(1), vectors_NDC.flatten(1)
        return {
            "codebook": self.options.codebook_weight * mean_square(vectors_NE, space_NE.detach(), mask_N),
            "commitment": self.options.commitment_weight * mean_square(space_NE, vectors_NE.detach(), mask_N),
        }


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class ResidualSimOptions(StackOptions, SimLevelOptions):
    """Those of every level and of the stack.

    Attributes:
        shared: one codebook and map for all levels.
    """

    shared: bool = False


@checks_arguments
def residual_simvq(
    dim: int,
    codebook_size: int,
    num_quantizers: int,
    options: ResidualSimOptions | None = None,
    *,
    code_dim: int | None = None,
) -> ResidualStack[SimQuantizer]:
    """SimVQ at every level, each with its own codebook and map or all with the same, in a space of size `code_dim`."""
    options = ResidualSimOptions() if options is None else options
    of_level = SimOptions(options.codebook_dim, options.codebook_weight, options.commitment_weight)
    own = 1 if options.shared else check_count("num_quantizers", num_quantizers)
    levels = [SimQuantizer(code_dim or dim, codebook_size, of_level) for _ in range(own)]
    order = levels * check_count("num_quantizers", num_quantizers) if options.shared else levels
    return ResidualStack(dim, order, code_dim=code_dim, options=options)


def mapped_codebook(transform: nn.Module, frozen_KF: Tensor, code_dim: int) -> Tensor:
    """The frozen vectors through the learned map (K, C), in fp32 whatever type its weights were cast to.

    ValueError where the map does not give vectors of size C.
    """
    weights = {name: parameter.float() for name, parameter in transform.named_parameters()}
    state = {name: buffer.float() for name, buffer in transform.named_buffers() if buffer.is_floating_point()}
    weight_KC: Tensor = torch.func.functional_call(transform, {**state, **weights}, (frozen_KF.float(),))
    if weight_KC.shape != (len(frozen_KF), code_dim):
        raise ValueError(
            f"the codebook transform gives {tuple(weight_KC.shape)} instead of {(len(frozen_KF), code_dim)}"
        )
    return weight_KC
