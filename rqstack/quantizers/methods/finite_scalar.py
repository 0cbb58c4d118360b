"""Finite scalar quantization: every scalar of a code vector is rounded to one of a few fixed values.

Legend: N vectors, D codebooks side by side, C scalars of a code vector (one per entry of `levels`), M = N x D.

Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024 (arXiv 2309.15505).
Symmetric variant: Parker et al., Scaling Transformers for Low-Bitrate High-Quality Speech Coding, 2024 (2411.19842).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rqstack.arguments import check_choice, check_count, check_number, shown
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.mixed_radix import MixedRadix, check_levels, scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import KeepsFloat32
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.residual_stack import ResidualStack, StackOptions
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

BOUNDS = ("tanh", "clamp", "hard_tanh")
MARGIN = 1e-3  # the bounded scalar reaches a little beyond the outermost values, so that these can be chosen


class ScalarGrid(KeepsFloat32, MixedRadix):
    """The grid of L fixed values per scalar: bounding, rounding, values. Scalars come first, (C, M), any float dtype.

    Values are k / (L // 2) for k from -(L // 2) to (L - 1) // 2; symmetric: L values evenly from -1 to 1. bound: see
    `FiniteScalarQuantizer`; 'hard_tanh' is 'tanh' with the function clamped to [-1, 1] in the place of tanh. margin: by
    what share of the half range the bounded scalar may pass the outermost values, where the grid is not symmetric.
    """

    top: Tensor
    centre: Tensor
    reach: Tensor
    offset: Tensor
    shift: Tensor
    step: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        symmetric: bool = False,
        bound: str = "tanh",
        counted: bool = True,
        margin: float = MARGIN,
    ):
        super().__init__(levels, counted)
        check_choice("bound", bound, BOUNDS)
        self.symmetric, self.bound_kind = symmetric, bound
        level_C1 = self.levels[:, None]
        half = (level_C1 - 1) * ((1 + margin) / 2)
        offset = 0.5 * (1 - level_C1 % 2)
        ratio = offset / half
        self._constant("top", level_C1 - 1.0)
        self._constant("centre", (level_C1 // 2).float())
        self._constant("reach", half)
        self._constant("offset", offset)
        self._constant("shift", ratio.atanh() if bound == "tanh" else ratio)
        self._constant("step", 2.0 / (level_C1 - 1))

    def _constant(self, name: str, value_C1: Tensor) -> None:
        self.register_buffer(name, value_C1, persistent=False)

    def units(self, x_CM: Tensor) -> Tensor:
        """Bounded scalars in units of one level: from 0 (symmetric) or centred on level L // 2."""
        squash = torch.tanh if self.bound_kind == "tanh" else _clamp_to_one
        if self.symmetric:
            return (squash(x_CM) + 1) * (self.top / 2)
        if self.bound_kind == "clamp":
            return (x_CM * self.centre).clamp_min(-self.centre).clamp_max(self.top - self.centre)
        return (squash(x_CM + self.shift) * self.reach).sub_(self.offset)

    def bounded(self, units_CM: Tensor) -> Tensor:
        """Units -> the range of the values, without rounding."""
        return units_CM * self.step - 1.0 if self.symmetric else units_CM / self.centre

    def round(self, units_CM: Tensor) -> Tensor:
        """Units -> digits 0 .. L - 1, in the dtype of the units; what is no number becomes the lowest."""
        digits = (units_CM + 0.5).floor_() if self.symmetric else units_CM.round().add_(self.centre)
        return digits.nan_to_num_(0.0).clamp_min_(0).clamp_max_(self.top)

    def values(self, digits_CM: Tensor) -> Tensor:
        """Digits -> values: floats for digits of an integer type, fp32."""
        if self.symmetric:
            return (digits_CM * self.step).sub_(1.0)
        return (digits_CM - self.centre).div_(self.centre)

    def nearest(self, x_CM: Tensor, moved: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Scalars -> their values, with the gradient of the bound, and digits. moved: applied before the rounding."""
        units_CM = self.units(x_CM)
        with torch.no_grad():
            digits_CM = self.round(units_CM if moved is None else moved(units_CM))
            values_CM = self.values(digits_CM)
        if units_CM.requires_grad:
            values_CM = straight_through(self.bounded(units_CM), values_CM)
        return values_CM, digits_CM

    def digits_of_values(self, values_CM: Tensor) -> Tensor:
        """Values, or scalars near them -> digits 0 .. L - 1, in the dtype given."""
        units_CM = (values_CM + 1) / self.step if self.symmetric else values_CM * self.centre
        return self.round(units_CM)


@checks_arguments
@dataclass(frozen=True)
class FiniteScalarOptions:
    """Settings of finite scalar quantization.

    ValueError for levels below 3 (2 with preserve_symmetry) and other wrong options.

    Attributes:
        levels: values per scalar; their product is K.
        preserve_symmetry: L values evenly from -1 to 1 instead, also for even L.
        noise_dropout: share of the scalars that are moved by a uniform offset of up to half a level before they are
            rounded, in train mode; code and value still agree.
    """

    levels: list[int]
    preserve_symmetry: bool = False
    noise_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if 2 in self.levels and not self.preserve_symmetry:
            raise ValueError(
                f"levels {shown(list(self.levels))}: a level of 2 has the values -1 and 0, and nearly every input "
                "becomes 0; choose at least 3, or preserve_symmetry=True (values -1 and 1)"
            )
        check_number("noise_dropout", self.noise_dropout, 0, 1)


@checks_arguments
class FiniteScalarQuantizer(SideBySideQuantizer):
    """Bound every scalar, round it to one of L values; K is the product of the levels and no codebook is stored.

    dim: E; projected to `num_codebooks` x `len(levels)` scalars where it differs. Values are k / (L // 2) for k from
    -(L // 2) to (L - 1) // 2. bound: 'tanh'; 'clamp' for inputs that have been bounded before, and take the nearest
    value; 'hard_tanh', 'tanh' made of straight lines. The first level varies fastest in a code. There is no loss.
    """

    def __init__(
        self,
        dim: int,
        options: FiniteScalarOptions,
        *,
        num_codebooks: int = 1,
        bound: str = "tanh",
        project: bool | None = None,
    ):
        super().__init__(dim, len(options.levels), math.prod(options.levels), num_codebooks, project)
        self.grid = ScalarGrid(options.levels, options.preserve_symmetry, bound)
        self.noise_dropout = options.noise_dropout

    def bound(self, x: Tensor) -> Tensor:
        """Scalars (..., C) -> the range of the values, without rounding."""
        bounded_CM = self.grid.bounded(self.grid.units(scalars_first(x)))
        return scalars_last(bounded_CM, x.shape[:-1])

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The code vectors, with the gradient of the bound, stand in for the searched vectors: no term needs these."""
        values_CM, digits_CM = self.grid.nearest(scalars_first(x_NDC), self._dithered)
        vectors_NDC = scalars_last(values_CM, x_NDC.shape[:2])
        return vectors_NDC, vectors_NDC, self.grid.codes(digits_CM).view(x_NDC.shape[:2])

    def _estimate(self, space_NDC: Tensor, vectors_NDC: Tensor) -> Tensor:
        return vectors_NDC

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        units_CM = self.grid.units(scalars_first(x_NDC))
        codes_M = self.grid.codes(self.grid.round(self._dithered(units_CM.detach())))
        return scalars_last(self.grid.bounded(units_CM), x_NDC.shape[:2]), codes_M.view(x_NDC.shape[:2])

    def _dithered(self, units: Tensor) -> Tensor:
        if not (self.training and self.noise_dropout > 0):
            return units
        moved = torch.rand_like(units) < self.noise_dropout
        return units + torch.where(moved, torch.rand_like(units) - 0.5, 0.0)

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        return scalars_last(self.grid.values(self.grid.digits(codes_ND.reshape(-1))), codes_ND.shape)


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class ResidualFiniteScalarOptions(StackOptions):
    """Those of every level (see `FiniteScalarOptions`) and of the stack.

    Attributes:
        levels: values per scalar, at every level of the stack; their product is K.
        preserve_symmetry: L values evenly from -1 to 1 instead, also for even L.
    """

    levels: list[int]
    preserve_symmetry: bool = False


@checks_arguments
def residual_fsq(
    dim: int, num_quantizers: int, options: ResidualFiniteScalarOptions
) -> ResidualStack[FiniteScalarQuantizer]:
    """FSQ on grids that get finer by the factor L - 1 per level and scalar; the input is bounded once, in front.

    ValueError for levels of 2, whose grids would not get finer.
    """
    check_count("num_quantizers", num_quantizers)
    if 2 in options.levels:
        raise ValueError(
            f"levels {shown(list(options.levels))}: a grid of 2 values does not get finer from level to level; "
            "choose at least 3"
        )
    levels, code_dim = options.levels, len(options.levels)
    of_level = FiniteScalarOptions(levels, options.preserve_symmetry)
    first, grid = FiniteScalarQuantizer(code_dim, of_level), FiniteScalarQuantizer(code_dim, of_level, bound="clamp")
    scales = [[float(level - 1) ** -depth for level in levels] for depth in range(num_quantizers)]
    books = [grid] * num_quantizers
    return _ResidualGrid(dim, books, code_dim=code_dim, scales=scales, bound=_Bound(first), options=options)


class _ResidualGrid(ResidualStack[FiniteScalarQuantizer]):
    """Levels of one finite scalar quantizer without noise: scalars come first all the way, and no level has terms."""

    @torch.no_grad()
    def _quantize(self, x: Tensor, mask: Tensor | None, kept: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        grid = self.levels[0].grid
        residual_CM, codes = scalars_first(x), []
        total_CM: Tensor | None = None
        for scale_C1 in self.scale[:kept, :, None]:
            vectors_CM, digits_CM = grid.nearest(residual_CM / scale_C1)
            vectors_CM = vectors_CM * scale_C1
            residual_CM = residual_CM - vectors_CM
            total_CM = vectors_CM if total_CM is None else total_CM + vectors_CM
            codes.append(grid.codes(digits_CM))
        assert total_CM is not None, "at least one level is kept"
        return scalars_last(total_CM, x.shape[:-1]), torch.stack(codes, -1).view(*x.shape[:-1], kept), {}


class _Bound(nn.Module):
    """The bound of a finite scalar quantizer as a module."""

    def __init__(self, quantizer: FiniteScalarQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.bound(x)


def _clamp_to_one(x: Tensor) -> Tensor:
    return x.clamp(-1.0, 1.0)
