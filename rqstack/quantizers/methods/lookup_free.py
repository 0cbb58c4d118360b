"""Lookup-free quantization: a code is the signs of its scalars.

Legend: N vectors, D codebooks side by side, C bits of a code.

Yu et al., Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation, ICLR 2024 (arXiv 2310.05737).
Spherical variant: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024 (2406.07548).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.arguments import check_count, check_number, shown
from rqstack.quantizers.arithmetic.bit_entropy import mean_entropy, mean_usage_entropy
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.residual_stack import ResidualStack, StackOptions
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

EXACT_BITS = 24  # sums of as many powers of two are exact in fp32, so a matrix product may add them up


@checks_arguments
@dataclass(frozen=True)
class LookupFreeOptions:
    """Settings of lookup-free quantization. ValueError for values that are negative or, but for weights, zero.

    Attributes:
        spherical: vectors are normalised first and the scale is 1 / sqrt(C).
        scale: every scalar becomes plus or minus it.
        entropy_weight, diversity_weight, commitment_weight: of the terms of the loss, see `LookupFreeQuantizer`.
        inv_temperature: of the soft bits behind the entropies, see `LookupFreeQuantizer`.
        joint_bits (bits): largest group of bits whose use is averaged jointly, in 2^joint_bits numbers.
    """

    spherical: bool = False
    scale: float = 1.0
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    commitment_weight: float = 0.25
    inv_temperature: float = 100.0
    joint_bits: int = 16

    def __post_init__(self) -> None:
        for name in ("entropy_weight", "commitment_weight", "diversity_weight"):
            check_number(name, getattr(self, name), 0)
        for name in ("scale", "inv_temperature"):
            check_number(name, getattr(self, name), 0, above=True)
        check_count("joint_bits", self.joint_bits)


@checks_arguments
class LookupFreeQuantizer(SideBySideQuantizer):
    """Every scalar becomes +scale or -scale (zero becomes -scale); the first bit is the highest of a code.

    dim: E; projected to `num_codebooks` x log2(`codebook_size`) scalars where it differs. Terms of the loss, means over
    the positions that count:
    entropy = entropy_weight x mean entropy of softmax(2 x inv_temperature x x . c) (one code for a vector),
    diversity = -entropy_weight x diversity_weight x entropy of the mean of these (all codes in use),
    commitment = commitment_weight x mean squared distance to the code vector.

    The distribution of one vector is a product over bits, so its entropy is a sum over bits, and the mean distribution
    of a group of bits is one product of two thin matrices. Groups count as independent, which bounds the entropy of the
    mean from above. Up to 2^joint_bits codes diversity is exact; above, the bound misses dependence between bits of
    different groups. The mean is one over the vectors of all processes, which must take the same number of steps. In
    eval mode there are no entropy terms: they regularise training, and cost more than the codes.
    ValueError for a codebook size that is no power of two.
    """

    shifts: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        options: LookupFreeOptions | None = None,
        *,
        num_codebooks: int = 1,
        project: bool | None = None,
    ):
        bits = bits_of(codebook_size)
        super().__init__(dim, bits, codebook_size, num_codebooks, project)
        self.options = LookupFreeOptions() if options is None else options
        self.scale = 1 / math.sqrt(bits) if self.options.spherical else float(self.options.scale)
        self.register_buffer("shifts", torch.arange(bits - 1, -1, -1), persistent=False)

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        space_NDC = F.normalize(x_NDC, dim=-1) if self.options.spherical else x_NDC
        with torch.no_grad():
            bits_NDC = (space_NDC > 0).float()
            vectors_NDC = bits_NDC * (2 * self.scale) - self.scale
        return space_NDC, vectors_NDC, codes_of_bits(bits_NDC, self.shifts)

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        space_NDC, _, codes_ND = self._quantize(x_NDC)
        return space_NDC, codes_ND

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        bits = (codes_ND[..., None] >> self.shifts) & 1
        return bits.float() * (2 * self.scale) - self.scale

    def _terms(self, space_NDC: Tensor, vectors_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        options, terms = self.options, {}
        if options.commitment_weight > 0:
            distance = mean_square(space_NDC.flatten(1), vectors_NDC.flatten(1), mask_N)
            terms["commitment"] = options.commitment_weight * distance
        if options.entropy_weight > 0 and self.training:
            logits_NDC = log_odds(space_NDC, options.inv_temperature, self.scale)
            terms["entropy"] = options.entropy_weight * mean_entropy(logits_NDC, mask_N)
            if options.diversity_weight > 0:
                mean = mean_usage_entropy(logits_NDC, mask_N, options.joint_bits)
                terms["diversity"] = -options.entropy_weight * options.diversity_weight * mean
        return terms


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class ResidualLookupFreeOptions(StackOptions, LookupFreeOptions):
    """Those of every level and of the stack."""


@checks_arguments
def residual_lfq(
    dim: int, codebook_size: int, num_quantizers: int, options: ResidualLookupFreeOptions | None = None
) -> ResidualStack[LookupFreeQuantizer]:
    """LFQ with a scale that halves at every level."""
    options = ResidualLookupFreeOptions() if options is None else options
    bits, num_quantizers = bits_of(codebook_size), check_count("num_quantizers", num_quantizers)
    levels = [LookupFreeQuantizer(bits, codebook_size, options) for _ in range(num_quantizers)]
    scales = [2.0**-depth for depth in range(num_quantizers)]
    return ResidualStack(dim, levels, code_dim=bits, scales=scales, options=options)


def log_odds(space: Tensor, inv_temperature: float, scale: float) -> Tensor:
    """Log odds of every bit under softmax(2 x inv_temperature x x . c) over the code vectors c of +scale and -scale."""
    return (4 * inv_temperature * scale) * space


def codes_of_bits(bits: Tensor, shifts_C: Tensor) -> Tensor:
    """Bits (..., C) of any type -> int64 codes (...); `shifts_C` says which power of two each one stands for."""
    if len(shifts_C) <= EXACT_BITS:
        with full_precision(bits.device):
            return (bits.float() @ torch.bitwise_left_shift(1, shifts_C).float()).long()
    return (bits.long() << shifts_C).sum(-1)


def bits_of(codebook_size: int) -> int:
    """log2 of a codebook size; ValueError where it is not a whole number from 1 to 62."""
    whole = isinstance(codebook_size, int) and not isinstance(codebook_size, bool)
    bits = codebook_size.bit_length() - 1 if whole else 0
    if not 1 <= bits <= 62 or codebook_size != 1 << bits:
        raise ValueError(f"codebook size must be a power of two from 2 to 2^62, got {shown(codebook_size)}")
    return bits
