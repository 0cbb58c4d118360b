"""Binary mapper: log odds of bits -> one code out of 2^bits, drawn in training.

Legend: N vectors, D codebooks side by side, C bits of a code, K = 2^C.

Fleuret, The Free Transformer, 2025 (arXiv 2510.17558).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.bit_entropy import row_weights
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.methods.lookup_free import bits_of, codes_of_bits
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer

LN2 = math.log(2)


class BinaryMapper(SideBySideQuantizer):
    """Every scalar is the log odds of a bit: drawn in train mode, its more likely value in eval mode.

    dim: E; projected to `num_codebooks` x log2(`codebook_size`) scalars where it differs. Code vectors are +1 and -1
    per bit, with the gradient of the bit's mean, tanh(x / 2). The first bit is the lowest of a code. Term of the loss:
    kl = kl_weight x mean of what the divergence of a code from a uniform one exceeds `free_nats` by (in nats).
    ValueError for a codebook size that is no power of two and negative weights.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_codebooks: int = 1,
        kl_weight: float = 1.0,
        free_nats: float = LN2,
        project: bool | None = None,
    ):
        bits = bits_of(codebook_size)
        if min(kl_weight, free_nats) < 0:
            raise ValueError(f"kl_weight and free_nats must not be negative, got {kl_weight} and {free_nats}")
        super().__init__(dim, bits, codebook_size, num_codebooks, project)
        self.kl_weight, self.free_nats = kl_weight, free_nats
        self.register_buffer("shifts", torch.arange(bits), persistent=False)

    def one_hot(self, z: torch.Tensor) -> torch.Tensor:
        """The code as a one-hot vector (..., D, K), with the gradient of the probabilities of all K codes."""
        logits_NDC, codes_ND = self._search_logits(z)
        log_probs = code_log_probs(logits_NDC)
        hot = F.one_hot(codes_ND, self.num_codes[0]).to(log_probs)
        return straight_through(log_probs.exp(), hot).view(*z.shape[:-1], *hot.shape[1:])

    def _search_logits(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NDC = self._to_space(z)
        return logits_NDC, self._draw(logits_NDC)

    @torch.no_grad()
    def _draw(self, logits_NDC: torch.Tensor) -> torch.Tensor:
        threshold = torch.rand_like(logits_NDC) if self.training else 0.5
        return codes_of_bits(logits_NDC.sigmoid() > threshold, self.shifts)

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x_NDC / 2).tanh(), self._draw(x_NDC)

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        return (2 * ((codes_ND[..., None] >> self.shifts) & 1) - 1).float()

    def _terms(
        self, space_NDC: torch.Tensor, vectors_NDC: torch.Tensor, mask_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        weight_N = row_weights(len(space_NDC), mask_N, space_NDC.device)
        mean = torch.where((weight_N > 0)[:, None, None], space_NDC, 0.0)
        entropy_ND = _bit_entropy((1 + mean) / 2).sum(-1)
        excess_ND = F.relu(space_NDC.shape[-1] * LN2 - entropy_ND - self.free_nats)
        return {"kl": self.kl_weight * (excess_ND.mean(1) * weight_N).sum()}


def code_log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log odds of C bits (..., C) -> log probabilities of all codes (..., 2^C), the first bit lowest in a code."""
    num_bits = logits.shape[-1]
    codes_K = torch.arange(2**num_bits, device=logits.device)
    bits_CK = (codes_K >> torch.arange(num_bits, device=logits.device)[:, None]) & 1
    return logits @ bits_CK.to(logits.dtype) + F.logsigmoid(-logits).sum(-1, keepdim=True)


def _bit_entropy(prob: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of bits with probability `prob`; finite gradients at 0 and 1."""
    tiny = torch.finfo(torch.float32).tiny
    other = 1 - prob
    return -prob * prob.clamp(min=tiny).log() - other * other.clamp(min=tiny).log()
