"""Finite scalar perturbation: every scalar is mapped to (0, 1), where equal bins are its values.

Legend: N vectors, D codebooks side by side, C scalars of a code vector (one per entry of `levels`), M = N x D.

Ding et al., VP-VAE: Rethinking Vector Quantization via Adaptive Vector Perturbation, 2026 (arXiv 2602.17133), the
variant for fixed scalar bins (FSP).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rqstack.arguments import check_choice, check_number
from rqstack.quantizers.arithmetic.mixed_radix import MixedRadix, check_levels, scalars_first, scalars_last
from rqstack.quantizers.arithmetic.scalar_moments import MomentTargets, moment_loss, scalar_moments
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

UNIFORM_SPREAD = 1 / math.sqrt(12)  # standard deviation of a uniform number in (0, 1)
EDGE = 1e-6  # bin centres stay this far from 0 and 1 when they are mapped back


def _tanh(x: Tensor) -> Tensor:
    return (x.tanh() + 1) / 2


def _inverse_tanh(p: Tensor) -> Tensor:
    return (2 * p - 1).atanh()


def _normal(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def _inverse_normal(p: Tensor) -> Tensor:
    return torch.erfinv(2 * p - 1) * math.sqrt(2)


def _laplace(x: Tensor) -> Tensor:
    return 0.5 - 0.5 * x.sign() * torch.expm1(-x.abs())


def _inverse_laplace(p: Tensor) -> Tensor:
    centred = p - 0.5
    return -centred.sign() * torch.log1p(-2 * centred.abs())


def _cauchy(x: Tensor) -> Tensor:
    return x.atan() / math.pi + 0.5


def _inverse_cauchy(p: Tensor) -> Tensor:
    return ((p - 0.5) * math.pi).tan()


# name -> (distribution function of a density, its inverse); named, so that a module that keeps one can be saved
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (_tanh, _inverse_tanh),
    "sigmoid": (torch.sigmoid, torch.logit),
    "normal": (_normal, _inverse_normal),
    "laplace": (_laplace, _inverse_laplace),
    "cauchy": (_cauchy, _inverse_cauchy),
}
# variance of that density: an input that has it fills the bins evenly
VARIANCES = {"tanh": math.pi**2 / 12, "sigmoid": math.pi**2 / 3, "normal": 1.0, "laplace": 2.0, "cauchy": None}


@checks_arguments
@dataclass(frozen=True)
class ScalarPerturbationOptions:
    """Settings of finite scalar perturbation. ValueError for wrong values.

    Attributes:
        levels: bins per scalar; their product is K.
        activation: 'tanh', 'sigmoid', 'normal', 'laplace' or 'cauchy'.
        quantize_rate: share of the scalars that take the bin centre in train mode; the others are moved by a uniform
            offset of up to half a bin instead, which is what the decoder has to bear in eval mode.
        invert: values go back through the inverse function, with the gradient of the identity.
        mean_weight, variance_weight, skewness_weight, kurtosis_weight: of the moments in the loss, see
            `ScalarPerturbationQuantizer`.
    """

    levels: list[int]
    activation: str = "tanh"
    quantize_rate: float = 0.0
    invert: bool = False
    mean_weight: float = 0.1
    variance_weight: float = 0.07
    skewness_weight: float = 0.0
    kurtosis_weight: float = 0.0

    def __post_init__(self) -> None:
        check_levels(self.levels)
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_number("quantize_rate", self.quantize_rate, 0, 1)
        for name in ("mean_weight", "variance_weight", "skewness_weight", "kurtosis_weight"):
            check_number(name, getattr(self, name), 0)


@checks_arguments
class ScalarPerturbationQuantizer(SideBySideQuantizer):
    """Every scalar goes through a distribution function to (0, 1) and takes the centre of one of L equal bins there.

    dim: E; projected to `num_codebooks` x `len(levels)` scalars where it differs. Values are the bin centres, scaled to
    mean 0 and variance 1. The first level varies fastest in a code. In train mode, with a quantize_rate below 1,
    `quantized` differs from `decode(codes)`; otherwise they are equal.
    Term of the loss, in train mode: moments, over the vectors of all processes: mean_weight x squared mean +
    variance_weight x squared distance of the variance from the activation's own, skewness_weight and kurtosis_weight x
    the square of these.
    """

    def __init__(
        self,
        dim: int,
        options: ScalarPerturbationOptions,
        *,
        num_codebooks: int = 1,
        project: bool | None = None,
    ):
        super().__init__(dim, len(options.levels), math.prod(options.levels), num_codebooks, project)
        self.bins = ScalarBins(options.levels, options.activation, options.quantize_rate, options.invert)
        variance = VARIANCES[options.activation]
        self.moment_targets = MomentTargets(
            (0.0, options.mean_weight),
            (0.0, 0.0) if variance is None else (variance, options.variance_weight),
            (0.0, options.skewness_weight),
            (0.0, options.kurtosis_weight),
        )

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors, bin centres scaled to mean 0 and variance 1 (with `invert` as well), fp32."""
        codes_K = torch.arange(self.num_codes[depth], device=self.bins.levels.device)
        return self.bins.scaled(self.bins.centres(self.bins.digits(codes_K))).T

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = x_NDC.shape[:2]
        act_CM = self.bins.activate(scalars_first(x_NDC))
        with torch.no_grad():
            digits_CM = self.bins.round(act_CM)
            centres_CM = self.bins.centres(digits_CM)
            if self.training:
                centres_CM, _ = self.bins.perturb(act_CM, centres_CM)
            vectors = scalars_last(self.bins.values(centres_CM), grid)
            codes_ND = self.bins.codes(digits_CM).view(grid)
        passed_NDC = x_NDC if self.bins.invert else scalars_last(self.bins.scaled(act_CM), grid)
        return passed_NDC, vectors, codes_ND

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        act_CM = self.bins.activate(scalars_first(x_NDC))
        codes_ND = self.bins.codes(self.bins.round(act_CM)).view(x_NDC.shape[:2])
        return scalars_last(self.bins.scaled(act_CM), x_NDC.shape[:2]), codes_ND

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        centres_CM = self.bins.centres(self.bins.digits(codes_ND.reshape(-1)))
        return scalars_last(self.bins.values(centres_CM), codes_ND.shape)

    def _input_terms(self, x_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        targets = self.moment_targets
        if not self.training or max(weight for _, weight in vars(targets).values()) == 0:
            return {}
        return {"moments": moment_loss(scalar_moments(x_NDC.flatten(1), mask_N, over_ranks=True), targets)}


class ScalarBins(MixedRadix):
    """L equal bins of (0, 1) per scalar. Scalars come first, (C, M), in any float dtype. Options: see above."""

    def __init__(self, levels: Sequence[int], activation: str, quantize_rate: float, invert: bool):
        super().__init__(levels)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if not 0 <= quantize_rate <= 1:
            raise ValueError(f"quantize_rate must be in [0, 1], got {quantize_rate}")
        self.activation, self.quantize_rate, self.invert = activation, quantize_rate, invert

    def activate(self, x_CM: Tensor) -> Tensor:
        """Scalars -> [0, 1]."""
        return ACTIVATIONS[self.activation][0](x_CM)

    def round(self, act_CM: Tensor) -> Tensor:
        """Numbers in [0, 1] -> bins 0 .. L - 1, in the dtype given; what is no number goes to the lowest."""
        digits = (act_CM * self.levels[:, None]).floor()
        return digits.nan_to_num(0.0).clamp_min(0).minimum(self.levels[:, None].to(digits) - 1)

    def centres(self, digits_CM: Tensor) -> Tensor:
        """Bins -> their centres in (0, 1)."""
        return (digits_CM + 0.5) / self.levels[:, None]

    def perturb(self, act_CM: Tensor, centres_CM: Tensor) -> tuple[Tensor, Tensor]:
        """The centres, but for a share of 1 - quantize_rate: there the numbers moved by up to half a bin, uniformly.

        A move out of (0, 1) is not made; the second result is the share of moves that stay inside. Draws two uniform
        numbers per scalar in the order (M, C) from the global generator, none with a quantize_rate of 1.
        """
        if self.quantize_rate >= 1:
            return centres_CM, act_CM.new_ones(())
        moves_CM, choice_CM = (torch.rand_like(act_CM.T, memory_format=torch.contiguous_format).T for _ in range(2))
        moved_CM = act_CM + (2 * moves_CM - 1) / (2 * self.levels[:, None])
        inside_CM = (moved_CM > 0) & (moved_CM < 1)
        moved_CM = torch.where(inside_CM, moved_CM, act_CM)
        return torch.where(choice_CM > self.quantize_rate, moved_CM, centres_CM), inside_CM.float().mean()

    def scaled(self, act_CM: Tensor) -> Tensor:
        """(0, 1) -> the scale on which a uniform number has mean 0 and variance 1."""
        return (act_CM - 0.5) / UNIFORM_SPREAD

    def values(self, act_CM: Tensor) -> Tensor:
        """(0, 1) -> the scale of the output."""
        if self.invert:
            return ACTIVATIONS[self.activation][1](act_CM.clamp(EDGE, 1 - EDGE))
        return self.scaled(act_CM)
