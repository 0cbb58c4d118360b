"""Entropies of independent bits and of the mean of their distributions, without a table of all codes per vector.

Legend: N vectors, n rows of a chunk, D codebooks side by side, C bits of a code, G bits that are averaged jointly, A
the settings of the first half of them, B those of the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.nearest import rows_per_chunk
from rqstack.quantizers.arithmetic.sync import all_reduce_sum, differentiable_all_reduce

SMALLEST = 1e-30
LIVE_COPIES = 8  # (n, 2^(G / 2)) tensors alive at once in the backward pass of a chunk


def row_weights(num_rows: int, mask_N: Tensor | None, device: torch.device) -> Tensor:
    """Weights of the rows in a mean: equal, zero where the mask is False, adding up to 1 (to 0 without any row)."""
    kept_N = torch.ones(num_rows, device=device) if mask_N is None else mask_N.float()
    return kept_N / kept_N.sum().clamp(min=1)


def row_weights_of_all_ranks(num_rows: int, mask_N: Tensor | None, device: torch.device) -> Tensor:
    """As `row_weights`, for a mean over the rows of all processes: the weights of all ranks together add up to 1."""
    kept_N = torch.ones(num_rows, device=device) if mask_N is None else mask_N.float()
    count = kept_N.sum()
    all_reduce_sum(count)
    return kept_N / count.clamp(min=1)


def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy (nats) of a bit with these log odds."""
    return F.softplus(logits) - logits * logits.sigmoid()


def mean_entropy(logits_NDC: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """Mean over rows that count and codebooks of the entropy (nats) of C independent bits with these log odds."""
    weight_N = row_weights(len(logits_NDC), mask_N, logits_NDC.device)
    entropy_NE = bit_entropy(_drop(logits_NDC, mask_N)).flatten(1)
    return (weight_N @ entropy_NE).sum() / logits_NDC.shape[1]


def mean_usage_entropy(logits_NDC: Tensor, mask_N: Tensor | None, joint_bits: int, floor: float = SMALLEST) -> Tensor:
    """Entropy (nats) of the mean distribution of the codes over the rows that count, averaged over the codebooks.

    The distribution of C bits counts as independent between groups of `joint_bits`, whose entropies are added up.
    The rows are those of all processes, which must all call it. The value is the same on every rank, and gradients
    averaged over ranks are those of one process with all rows. floor: probabilities below count as this inside the
    logarithm.
    """
    weight_N = row_weights_of_all_ranks(len(logits_NDC), mask_N, logits_NDC.device)
    num_groups = math.ceil(logits_NDC.shape[2] / joint_bits)
    total = logits_NDC.new_zeros(())
    for book_CN in _drop(logits_NDC, mask_N).permute(1, 2, 0).contiguous():
        for logits_GN in book_CN.tensor_split(num_groups):
            mean_AB = differentiable_all_reduce(_MeanJoint.apply(logits_GN, weight_N))
            total = total - (mean_AB * mean_AB.clamp(min=floor).log()).sum()
    return total / logits_NDC.shape[1]


def _drop(logits_NDC: Tensor, mask_N: Tensor | None) -> Tensor:
    """Zero the rows that do not count, whatever they hold."""
    return logits_NDC if mask_N is None else torch.where(mask_N[:, None, None], logits_NDC, 0.0)


class _MeanJoint(torch.autograd.Function):
    """Mean distribution of G bits as a (2^A, 2^B) matrix from log odds (G, N) and row weights (N,).

    The distribution of a row is the outer product of those of the two halves of its bits, so the mean is one product of
    two thin matrices. They are made chunk by chunk, and again in the backward pass instead of being kept.
    """

    @staticmethod
    def forward(ctx: Any, logits_GN: Tensor, weight_N: Tensor) -> Tensor:
        ctx.save_for_backward(logits_GN, weight_N)
        first = len(logits_GN) // 2
        mean_AB = logits_GN.new_zeros((2**first, 2 ** (len(logits_GN) - first)))
        for logits, weight in _chunks(logits_GN, weight_N):
            mean_AB.addmm_(_joint(logits[:first]).mul_(weight), _joint(logits[first:]).T)
        return mean_AB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AB: Tensor) -> tuple[Tensor, None]:
        logits_GN, weight_N = ctx.saved_tensors
        first = len(logits_GN) // 2
        grads = []
        for logits, weight in _chunks(logits_GN, weight_N):
            joint_An, joint_Bn = _joint(logits[:first]), _joint(logits[first:])
            grad_An = (grad_AB @ joint_Bn).mul_(weight)
            grad_Bn = (grad_AB.T @ joint_An).mul_(weight)
            halves = (
                _grad_of_logits(joint_An, grad_An, logits[:first]),
                _grad_of_logits(joint_Bn, grad_Bn, logits[first:]),
            )
            grads.append(torch.cat(halves))
        return torch.cat(grads, 1), None


def _chunks(logits_GN: Tensor, weight_N: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Rows whose (2^B, n) tensors fit the byte budget together."""
    num_bits = len(logits_GN)
    chunk = max(1, rows_per_chunk(2 ** (num_bits - num_bits // 2), logits_GN.device) // LIVE_COPIES)
    return zip(logits_GN.split(chunk, 1), weight_N.split(chunk), strict=True)


def _joint(logits_Gn: Tensor) -> Tensor:
    """Probabilities (2^G, n) of all settings of G independent bits, the first one highest; doubled bit by bit."""
    on_Gn, off_Gn = logits_Gn.sigmoid(), (-logits_Gn).sigmoid()
    joint = logits_Gn.new_ones((1, logits_Gn.shape[1]))
    for bit in reversed(range(len(logits_Gn))):
        joint = torch.cat([joint * off_Gn[bit], joint * on_Gn[bit]])
    return joint


def _grad_of_logits(joint_Kn: Tensor, grad_Kn: Tensor, logits_Gn: Tensor) -> Tensor:
    """d/d(log odds of a bit) of a code's probability p is p (bit - sigmoid(log odds))."""
    num_bits = len(logits_Gn)
    codes_K = torch.arange(2**num_bits, device=logits_Gn.device)
    shifts_G = torch.arange(num_bits - 1, -1, -1, device=logits_Gn.device)
    bits_GK = ((codes_K >> shifts_G[:, None]) & 1).to(joint_Kn.dtype)
    flow_Kn = grad_Kn.mul_(joint_Kn)
    return bits_GK @ flow_Kn - logits_Gn.sigmoid() * flow_Kn.sum(0)
