"""Binary mapper: log odds of bits -> one code out of 2^bits, drawn in training.

Legend: N vectors, D codebooks side by side, C bits of a code, K = 2^C.

Fleuret, The Free Transformer, 2025 (arXiv 2510.17558).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.arguments import check_number
from rqstack.quantizers.arithmetic.bit_entropy import row_weights
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.lookup_free import bits_of, codes_of_bits
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

LN2 = math.log(2)


@checks_arguments
@dataclass(frozen=True)
class BinaryOptions:
    """Settings of the binary mapper. ValueError for negative values.

    Attributes:
        kl_weight: of the divergence from uniform codes.
        free_nats (nats): the part of the divergence that costs nothing.
    """

    kl_weight: float = 1.0
    free_nats: float = LN2

    def __post_init__(self) -> None:
        for name in ("kl_weight", "free_nats"):
            check_number(name, getattr(self, name), 0)


@checks_arguments
class BinaryMapper(SideBySideQuantizer):
    """Every scalar is the log odds of a bit: drawn in train mode, its more likely value in eval mode.

    dim: E; projected to `num_codebooks` x log2(`codebook_size`) scalars where it differs. Code vectors are +1 and -1
    per bit, with the gradient of the bit's mean, tanh(x / 2). The first bit is the lowest of a code. Term of the loss:
    kl = kl_weight x mean of what the divergence of a code from a uniform one exceeds `free_nats` by (in nats).
    ValueError for a codebook size that is no power of two.
    """

    shifts: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        options: BinaryOptions | None = None,
        *,
        num_codebooks: int = 1,
        project: bool | None = None,
    ):
        bits = bits_of(codebook_size)
        super().__init__(dim, bits, codebook_size, num_codebooks, project)
        self.options = BinaryOptions() if options is None else options
        self.register_buffer("shifts", torch.arange(bits), persistent=False)

    def one_hot(self, z: Tensor) -> Tensor:
        """The code as a one-hot vector (..., D, K), with the gradient of the probabilities of all K codes."""
        logits_NDC, codes_ND = self._search_logits(z)
        log_probs = code_log_probs(logits_NDC)
        hot = F.one_hot(codes_ND, self.num_codes[0]).to(log_probs)
        return straight_through(log_probs.exp(), hot).view(*z.shape[:-1], *hot.shape[1:])

    def _search_logits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        logits_NDC = self._to_space(z)
        return logits_NDC, self._draw(logits_NDC)

    @torch.no_grad()
    def _draw(self, logits_NDC: Tensor) -> Tensor:
        threshold = torch.rand_like(logits_NDC) if self.training else 0.5
        return codes_of_bits(logits_NDC.sigmoid() > threshold, self.shifts)

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        return (x_NDC / 2).tanh(), self._draw(x_NDC)

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        return (2 * ((codes_ND[..., None] >> self.shifts) & 1) - 1).float()

    def _terms(self, space_NDC: Tensor, vectors_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        weight_N = row_weights(len(space_NDC), mask_N, space_NDC.device)
        mean = torch.where((weight_N > 0)[:, None, None], space_NDC, 0.0)
        entropy_ND = _bit_entropy((1 + mean) / 2).sum(-1)
        excess_ND = F.relu(space_NDC.shape[-1] * LN2 - entropy_ND - self.options.free_nats)
        return {"kl": self.options.kl_weight * (excess_ND.mean(1) * weight_N).sum()}


def code_log_probs(logits: Tensor) -> Tensor:
    """Log odds of C bits (..., C) -> log probabilities of all codes (..., 2^C), the first bit lowest in a code."""
    num_bits = logits.shape[-1]
    codes_K = torch.arange(2**num_bits, device=logits.device)
    bits_CK = (codes_K >> torch.arange(num_bits, device=logits.device)[:, None]) & 1
    return logits @ bits_CK.to(logits.dtype) + F.logsigmoid(-logits).sum(-1, keepdim=True)


def _bit_entropy(prob: Tensor) -> Tensor:
    """Entropy in nats of bits with probability `prob`; finite gradients at 0 and 1."""
    tiny = torch.finfo(torch.float32).tiny
    other = 1 - prob
    return -prob * prob.clamp(min=tiny).log() - other * other.clamp(min=tiny).log()
