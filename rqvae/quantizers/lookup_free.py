"""Lookup-free quantization: a code is the signs of its scalars.

Legend: N vectors, D codebooks side by side, C bits of a code.

Yu et al., Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation, ICLR 2024 (arXiv 2310.05737).
Spherical variant: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024 (2406.07548).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rqvae.quantizers.distance import rows_per_chunk
from rqvae.quantizers.implicit import ImplicitQuantizer, mean_square

SMALLEST = 1e-30


class LookupFreeQuantizer(ImplicitQuantizer):
    """Every scalar becomes +scale or -scale (zero becomes -scale); the first bit is the highest of a code.

    dim: E; projected to `num_codebooks` x log2(`codebook_size`) scalars where it differs. spherical: vectors are
    normalised first and the scale is 1 / sqrt(C). Terms of the loss, means over the positions that count:
    entropy = entropy_weight x mean entropy of softmax(2 x inv_temperature x x . c) (one code for a vector),
    diversity = -entropy_weight x diversity_weight x entropy of the mean of these (all codes in use),
    commitment = commitment_weight x mean squared distance to the code vector.

    The distribution of one vector is a product over bits, so its entropy is a sum over bits, and the mean distribution
    of a group of bits is one product of two thin matrices. joint_bits: largest group that is averaged jointly; groups
    count as independent, which bounds the entropy of the mean from above. Up to 2^joint_bits codes it is exact.
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

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        space_NDC = F.normalize(x_NDC, dim=-1) if self.spherical else x_NDC
        return space_NDC, ((space_NDC > 0).long() << self.shifts).sum(-1)

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        bits = (codes_ND[..., None] >> self.shifts) & 1
        return (2 * bits - 1).float() * self.scale

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        terms = {}
        if self.commitment_weight > 0:
            terms["commitment"] = self.commitment_weight * mean_square(space_NDC - vectors_NDC, mask_N)
        if self.entropy_weight > 0:
            logits_NDC = (4 * self.inv_temperature * self.scale) * space_NDC  # log odds of every bit
            weight_N = row_weights(len(logits_NDC), mask_N, logits_NDC.device)
            terms["entropy"] = self.entropy_weight * mean_entropy(logits_NDC, weight_N)
            if self.diversity_weight > 0:
                books = (entropy_of_mean(book_NC, weight_N, self.joint_bits) for book_NC in logits_NDC.unbind(1))
                mean = torch.stack(list(books)).mean()
                terms["diversity"] = -self.entropy_weight * self.diversity_weight * mean
        return terms


def bits_of(codebook_size: int) -> int:
    """log2 of a codebook size; ValueError where it is not a whole number from 1 to 62."""
    bits = codebook_size.bit_length() - 1
    if codebook_size < 2 or codebook_size != 1 << bits or bits > 62:
        raise ValueError(f"codebook size must be a power of two from 2 to 2^62, got {codebook_size}")
    return bits


def row_weights(num_rows: int, mask_N: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Weights of the rows in a mean: equal, zero where the mask is False, adding up to 1 (to 0 without any row)."""
    kept_N = torch.ones(num_rows, device=device) if mask_N is None else mask_N.float()
    return kept_N / kept_N.sum().clamp(min=1)


def mean_entropy(logits_NDC: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Mean over rows and codebooks of the entropy (nats) of C independent bits with log odds `logits_NDC`."""
    logits = _drop(logits_NDC, weight_N)
    entropy_ND = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1)
    return (entropy_ND.mean(1) * weight_N).sum()


def entropy_of_mean(logits_NC: torch.Tensor, weight_N: torch.Tensor, joint_bits: int) -> torch.Tensor:
    """Entropy (nats) of the mean over rows of the distribution of C bits, added up over groups of bits."""
    num_groups = math.ceil(logits_NC.shape[1] / joint_bits)
    groups = _drop(logits_NC, weight_N).tensor_split(num_groups, dim=1)
    return sum(_entropy(_mean_joint(group, weight_N)) for group in groups)


def _drop(logits: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Zero the rows without weight, whatever they hold."""
    return torch.where((weight_N > 0).view(-1, *[1] * (logits.ndim - 1)), logits, 0.0)


def _entropy(probs: torch.Tensor) -> torch.Tensor:
    return -(probs * probs.clamp(min=SMALLEST).log()).sum()


def _mean_joint(logits_NG: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Mean distribution of G bits as a (2^(G // 2), 2^(G - G // 2)) matrix, in chunks that are recomputed backwards.

    The distribution of a row is the outer product of those of the two halves of its bits.
    """
    half = logits_NG.shape[1] // 2
    chunk = rows_per_chunk(2 ** (logits_NG.shape[1] - half), logits_NG.device)
    mean = logits_NG.new_zeros((2**half, 2 ** (logits_NG.shape[1] - half)))
    for part, weight in zip(logits_NG.split(chunk), weight_N.split(chunk), strict=True):
        mean = mean + checkpoint(_weighted_joint, part, weight, half, use_reentrant=False, preserve_rng_state=False)
    return mean


def _weighted_joint(logits_NG: torch.Tensor, weight_N: torch.Tensor, half: int) -> torch.Tensor:
    first, second = _joint(logits_NG[:, :half]), _joint(logits_NG[:, half:])
    return (first * weight_N[:, None]).T @ second


def _joint(logits_NG: torch.Tensor) -> torch.Tensor:
    """Probabilities (N, 2^G) of all settings of G independent bits."""
    num_bits = logits_NG.shape[1]
    codes = torch.arange(2**num_bits, device=logits_NG.device)
    shifts = torch.arange(num_bits - 1, -1, -1, device=logits_NG.device)
    bits_CG = ((codes[:, None] >> shifts) & 1).float()
    return (logits_NG @ bits_CG.T).softmax(1)
