"""Lookup-free quantization: a code is the signs of its scalars.

Legend: N vectors, D codebooks side by side, C bits of a code.

Yu et al., Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation, ICLR 2024 (arXiv 2310.05737).
Spherical variant: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024 (2406.07548).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.bit_entropy import mean_entropy, mean_usage_entropy
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

EXACT_BITS = 24  # sums of as many powers of two are exact in fp32, so a matrix product may add them up


class LookupFreeQuantizer(SideBySideQuantizer):
    """Every scalar becomes +scale or -scale (zero becomes -scale); the first bit is the highest of a code.

    dim: E; projected to `num_codebooks` x log2(`codebook_size`) scalars where it differs. spherical: vectors are
    normalised first and the scale is 1 / sqrt(C). Terms of the loss, means over the positions that count:
    entropy = entropy_weight x mean entropy of softmax(2 x inv_temperature x x . c) (one code for a vector),
    diversity = -entropy_weight x diversity_weight x entropy of the mean of these (all codes in use),
    commitment = commitment_weight x mean squared distance to the code vector.

    The distribution of one vector is a product over bits, so its entropy is a sum over bits, and the mean distribution
    of a group of bits is one product of two thin matrices. joint_bits: largest group that is averaged jointly, in
    2^joint_bits numbers; groups count as independent, which bounds the entropy of the mean from above. Up to
    2^joint_bits codes diversity is exact; above, the bound misses dependence between bits of different groups.
    The mean is one over the vectors of all processes, which must take the same number of steps. In eval mode there are
    no entropy terms: they regularise training, and cost more than the codes.
    ValueError for a codebook size that is no power of two and other wrong options.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_codebooks: int = 1,
        spherical: bool = False,
        scale: float = 1.0,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.25,
        inv_temperature: float = 100.0,
        joint_bits: int = 16,
        project: bool | None = None,
    ):
        bits = bits_of(codebook_size)
        weights = {"entropy_weight": entropy_weight, "commitment_weight": commitment_weight}
        for name, weight in {**weights, "diversity_weight": diversity_weight}.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if scale <= 0 or inv_temperature <= 0 or joint_bits < 1:
            raise ValueError(
                f"scale, inv_temperature and joint_bits must be positive, got {scale}, {inv_temperature}, {joint_bits}"
            )
        super().__init__(dim, bits, codebook_size, num_codebooks, project)
        self.spherical = spherical
        self.scale = 1 / math.sqrt(bits) if spherical else float(scale)
        self.entropy_weight, self.diversity_weight = entropy_weight, diversity_weight
        self.commitment_weight, self.inv_temperature = commitment_weight, inv_temperature
        self.joint_bits = joint_bits
        self.register_buffer("shifts", torch.arange(bits - 1, -1, -1), persistent=False)

    def _quantize(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        space_NDC = F.normalize(x_NDC, dim=-1) if self.spherical else x_NDC
        with torch.no_grad():
            bits_NDC = (space_NDC > 0).float()
            vectors_NDC = bits_NDC * (2 * self.scale) - self.scale
        return space_NDC, vectors_NDC, codes_of_bits(bits_NDC, self.shifts)

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        space_NDC, _, codes_ND = self._quantize(x_NDC)
        return space_NDC, codes_ND

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        bits = (codes_ND[..., None] >> self.shifts) & 1
        return bits.float() * (2 * self.scale) - self.scale

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        terms = {}
        if self.commitment_weight > 0:
            distance = mean_square(space_NDC.flatten(1), vectors_NDC.flatten(1), mask_N)
            terms["commitment"] = self.commitment_weight * distance
        if self.entropy_weight > 0 and self.training:
            logits_NDC = log_odds(space_NDC, self.inv_temperature, self.scale)
            terms["entropy"] = self.entropy_weight * mean_entropy(logits_NDC, mask_N)
            if self.diversity_weight > 0:
                mean = mean_usage_entropy(logits_NDC, mask_N, self.joint_bits)
                terms["diversity"] = -self.entropy_weight * self.diversity_weight * mean
        return terms


def log_odds(space: torch.Tensor, inv_temperature: float, scale: float) -> torch.Tensor:
    """Log odds of every bit under softmax(2 x inv_temperature x x . c) over the code vectors c of +scale and -scale."""
    return (4 * inv_temperature * scale) * space


def codes_of_bits(bits: torch.Tensor, shifts_C: torch.Tensor) -> torch.Tensor:
    """Bits (..., C) of any type -> int64 codes (...); `shifts_C` says which power of two each one stands for."""
    if len(shifts_C) <= EXACT_BITS:
        with full_precision(bits.device):
            return (bits.float() @ torch.bitwise_left_shift(1, shifts_C).float()).long()
    return (bits.long() << shifts_C).sum(-1)


def bits_of(codebook_size: int) -> int:
    """log2 of a codebook size; ValueError where it is not a whole number from 1 to 62."""
    bits = codebook_size.bit_length() - 1
    if codebook_size < 2 or codebook_size != 1 << bits or bits > 62:
        raise ValueError(f"codebook size must be a power of two from 2 to 2^62, got {codebook_size}")
    return bits
