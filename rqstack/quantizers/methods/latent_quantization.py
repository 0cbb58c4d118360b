"""Latent quantization: every scalar has a small codebook of learned values of its own.

Legend: N vectors, D codebooks side by side, C scalars of a code vector, M = N x D, L values of one scalar.

Hsu et al., Disentanglement via Latent Quantization, NeurIPS 2023 (arXiv 2305.18378).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rqstack.arguments import check_number
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.mixed_radix import MixedRadix, check_levels, scalars_first, scalars_last
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import QuantizerOutput
from rqstack.quantizers.codebooks.alternating import OptimizerMaker, own_optimizer
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer


@checks_arguments
@dataclass(frozen=True)
class LatentOptions:
    """Settings of latent quantization. ValueError for levels below 2 and negative weights.

    Attributes:
        levels: learned values per scalar; their product is K.
        commitment_weight: of the term of the loss that pulls the input.
        quantization_weight: of the term of the loss that pulls the values.
        inplace_lr: the values learn by SGD steps of their own with this rate, in turns with the rest of the model.
            null: with the rest of the model.
    """

    levels: list[int]
    commitment_weight: float = 0.1
    quantization_weight: float = 0.1
    inplace_lr: float | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels)
        for name in ("commitment_weight", "quantization_weight"):
            check_number(name, getattr(self, name), 0)


@checks_arguments
class LatentQuantizer(SideBySideQuantizer):
    """Every scalar takes the nearest of its L learned values; K is the product of the levels.

    dim: E; projected to `num_codebooks` x `len(levels)` scalars where it differs. The values, shared by the codebooks
    side by side, are fp32 parameters and start evenly in [-0.5, 0.5]. Terms of the loss: quantization =
    quantization_weight x mean squared distance, pulls the values; commitment = commitment_weight x the same, pulls the
    input. The first level varies fastest in a code.
    in_place_optimizer: makes an optimizer from the values (`inplace_lr`: one of plain SGD), which then belong to no
    other: they leave the loss, train-mode forwards gather the gradient of their mean squared distance, and
    `update_codebook()` takes one step on that over all of them, of all processes.
    """

    def __init__(
        self,
        dim: int,
        options: LatentOptions,
        *,
        num_codebooks: int = 1,
        project: bool | None = None,
        in_place_optimizer: OptimizerMaker | None = None,
    ):
        super().__init__(dim, len(options.levels), math.prod(options.levels), num_codebooks, project)
        self.options, self.radix = options, MixedRadix(options.levels)
        self.values = nn.ParameterList([initial_values(level) for level in options.levels])
        self._gathered: list[tuple[Tensor, list[Tensor]]] = []  # rows, gradients of the mean over them
        make = own_optimizer(options.inplace_lr, in_place_optimizer)
        self.inplace_optimizer = None if make is None else make(list(self.values))
        if self.inplace_optimizer is not None:
            self.values.requires_grad_(False)

    def update_codebook(self) -> None:
        """With an optimizer of its own: one step on the mean over all vectors seen since the last call."""
        if self.inplace_optimizer is None or not self._gathered:
            return
        rows = torch.stack([number for number, _ in self._gathered])
        parts = zip(*(gradients for _, gradients in self._gathered), strict=True)
        gradients = [(rows / rows.sum().clamp(min=1)) @ torch.stack(part) for part in parts]
        step_in_place(self.inplace_optimizer, self.values, gradients, rows.sum())
        self.discard_codebook_update()

    def discard_codebook_update(self) -> None:
        """Forget the gradients gathered since the last update."""
        self._gathered = []

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E) in any float dtype; positions where `mask` (...) is False count in no loss."""
        if self.inplace_optimizer is not None and isinstance(z, Tensor):
            self._before_gathering(z)
        return super().forward(z, mask)

    def _has_gathered(self) -> bool:
        return bool(self._gathered)

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits_CM = nearest_digits(scalars_first(x_NDC.detach()), self.values)
        vectors_NDC = scalars_last(look_up(digits_CM, self.values), x_NDC.shape[:2])
        return x_NDC, vectors_NDC, self.radix.codes(digits_CM).view(x_NDC.shape[:2])

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        digits_CM = nearest_digits(scalars_first(x_NDC.detach()), self.values)
        return x_NDC, self.radix.codes(digits_CM).view(x_NDC.shape[:2])

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        return scalars_last(look_up(self.radix.digits(codes_ND.reshape(-1)), self.values), codes_ND.shape)

    def _terms(self, space_NDC: Tensor, vectors_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        space_NE, vectors_NE = space_NDC.flatten(1), vectors_NDC.flatten(1)
        commitment = mean_square(space_NE, vectors_NE.detach(), mask_N)
        if self.inplace_optimizer is not None:
            if self.training:
                finite_N = space_NE.detach().sum(1).isfinite()  # one bad vector must not poison the values
                valid_N = finite_N if mask_N is None else finite_N & mask_N
                gradients = distance_gradients(space_NDC.detach(), self.values, valid_N)
                self._gathered.append((valid_N.sum().float(), gradients))
            return {"commitment": self.options.commitment_weight * commitment}
        quantization = mean_square(vectors_NE, space_NE.detach(), mask_N)
        return {
            "quantization": self.options.quantization_weight * quantization,
            "commitment": self.options.commitment_weight * commitment,
        }


def initial_values(level: int) -> nn.Parameter:
    """L even steps: from -0.5 to 0.5 for odd L, from -0.5 to just below 0.5 (so that 0 is one of them) for even L."""
    steps = torch.arange(level, dtype=torch.float32)
    return nn.Parameter(steps / (level - level % 2) - 0.5)


@torch.no_grad()
def nearest_digits(x_CM: Tensor, values: Iterable[Tensor]) -> Tensor:
    """Index of the nearest of its own values for every scalar, int64 (C, M)."""
    found = [nearest_scalars(x_M, values_L.detach().to(x_CM.dtype)) for x_M, values_L in zip(x_CM, values, strict=True)]
    return torch.stack(found)


def look_up(digits_CM: Tensor, values: Iterable[Tensor]) -> Tensor:
    """Values (C, M) of the digits, at least fp32, with the gradient of the values."""
    rows = [
        values_L.to(torch.promote_types(values_L.dtype, torch.float32))[digits_M]
        for digits_M, values_L in zip(digits_CM, values, strict=True)
    ]
    return torch.stack(rows)


def distance_gradients(x_NDC: Tensor, values: Iterable[Tensor], mask_N: Tensor | None = None) -> list[Tensor]:
    """Gradient of the mean squared distance of x to its nearest values in these values, (L,) per scalar."""
    with torch.enable_grad():
        leaves = [values_L.detach().clone().requires_grad_() for values_L in values]
        digits_CM = nearest_digits(scalars_first(x_NDC), leaves)
        vectors_NDC = scalars_last(look_up(digits_CM, leaves), x_NDC.shape[:2])
        return list(torch.autograd.grad(mean_square(vectors_NDC.flatten(1), x_NDC.flatten(1), mask_N), leaves))


def step_in_place(
    optimizer: torch.optim.Optimizer,
    values: Iterable[Tensor],
    gradients: Sequence[Tensor],
    rows: Tensor | None = None,
) -> None:
    """One step of an optimizer of the values alone, on these gradients averaged over all processes.

    rows: 0-dim, how many the gradients of this process are the mean over; None, as many as on every other.
    """
    rows = torch.ones((), device=gradients[0].device) if rows is None else rows
    total = rows.clone()
    sync.all_reduce_sum(total)
    for values_L, gradient_L in zip(values, gradients, strict=True):
        gradient_L = gradient_L * (rows / total.clamp(min=1))
        sync.all_reduce_sum(gradient_L)
        values_L.grad = gradient_L.to(values_L.dtype)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def nearest_scalars(x: Tensor, values_L: Tensor) -> Tensor:
    """Index of the nearest of L values for every scalar; a binary search, so nothing grows with N x L.

    Values at the same distance: the one with the lower value.
    """
    ordered_L, order_L = values_L.sort(stable=True)
    middles = (ordered_L[1:] + ordered_L[:-1]) / 2
    return order_L[torch.bucketize(x.contiguous(), middles)]
