"""Entropies of independent bits and of the mean of their distributions, without a table of all codes per vector.

Legend: N vectors, n rows of a chunk, D codebooks side by side, C bits of a code, G bits that are averaged jointly, A
the settings of the first half of them, B those of the second.
"""

from __future__ import annotations

import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rqvae.quantizers.distance import rows_per_chunk
from rqvae.quantizers.sync import all_reduce_sum, differentiable_all_reduce

SMALLEST = 1e-30
LIVE_COPIES = 8  # (n, 2^(G / 2)) tensors alive at once in the backward pass of a chunk


def row_weights(num_rows: int, mask_N: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Weights of the rows in a mean: equal, zero where the mask is False, adding up to 1 (to 0 without any row)."""
    kept_N = torch.ones(num_rows, device=device) if mask_N is None else mask_N.float()
    return kept_N / kept_N.sum().clamp(min=1)


def row_weights_of_all_ranks(num_rows: int, mask_N: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """As `row_weights`, for a mean over the rows of all processes: the weights of all ranks together add up to 1."""
    kept_N = torch.ones(num_rows, device=device) if mask_N is None else mask_N.float()
    count = kept_N.sum()
    all_reduce_sum(count)
    return kept_N / count.clamp(min=1)


def mean_entropy(logits_NDC: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Mean over rows and codebooks of the entropy (nats) of C independent bits with log odds `logits_NDC`."""
    entropy_ND = bits_entropy(_drop(logits_NDC, weight_N))
    return (entropy_ND.mean(1) * weight_N).sum()


def bits_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (nats) of C independent bits with log odds (..., C)."""
    return (F.softplus(logits) - logits * logits.sigmoid()).sum(-1)


def entropy_of_mean(
    logits_NC: torch.Tensor, weight_N: torch.Tensor, joint_bits: int, floor: float = SMALLEST
) -> torch.Tensor:
    """Entropy (nats) of the weighted mean over rows of the distribution of C bits, added up over groups of bits.

    The rows are those of all processes, which must all call it; the weights are those of `row_weights_of_all_ranks`.
    The value is the same on every rank, and gradients averaged over ranks are those of one process with all rows.
    floor: probabilities below count as this inside the logarithm.
    """
    num_groups = math.ceil(logits_NC.shape[1] / joint_bits)
    total = logits_NC.new_zeros(())
    for logits_NG in _drop(logits_NC, weight_N).tensor_split(num_groups, dim=1):
        mean_AB = differentiable_all_reduce(_MeanJoint.apply(logits_NG, weight_N))
        total = total - (mean_AB * mean_AB.clamp(min=floor).log()).sum()
    return total


def mean_usage_entropy(
    logits_NDC: torch.Tensor, mask_N: torch.Tensor | None, joint_bits: int, floor: float = SMALLEST
) -> torch.Tensor:
    """`entropy_of_mean` over the rows that count, of all processes, averaged over the codebooks."""
    weight_N = row_weights_of_all_ranks(len(logits_NDC), mask_N, logits_NDC.device)
    books = [entropy_of_mean(book_NC, weight_N, joint_bits, floor) for book_NC in logits_NDC.unbind(1)]
    return torch.stack(books).mean()


def _drop(logits: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Zero the rows without weight, whatever they hold."""
    return torch.where((weight_N > 0).view(-1, *[1] * (logits.ndim - 1)), logits, 0.0)


class _MeanJoint(torch.autograd.Function):
    """Mean distribution of G bits as a (2^A, 2^B) matrix from log odds (N, G) and row weights (N,).

    The distribution of a row is the outer product of those of the two halves of its bits, so the mean is one product of
    two thin matrices. They are made chunk by chunk, and again in the backward pass instead of being kept.
    """

    @staticmethod
    def forward(ctx, logits_NG: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits_NG, weight_N)
        first = logits_NG.shape[1] // 2
        mean_AB = logits_NG.new_zeros((2**first, 2 ** (logits_NG.shape[1] - first)))
        for logits, weight in _chunks(logits_NG, weight_N):
            joint_nA = _joint(logits[:, :first]).mul_(weight[:, None])
            mean_AB.addmm_(joint_nA.T, _joint(logits[:, first:]))
        return mean_AB

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_AB: torch.Tensor):
        logits_NG, weight_N = ctx.saved_tensors
        first = logits_NG.shape[1] // 2
        grads = []
        for logits, weight in _chunks(logits_NG, weight_N):
            halves = logits[:, :first], logits[:, first:]
            joint_nA, joint_nB = _joint(halves[0]), _joint(halves[1])
            grad_nA = _grad_of_logits(joint_nA, (joint_nB @ grad_AB.T).mul_(weight[:, None]), halves[0])
            grad_nB = _grad_of_logits(joint_nB, (joint_nA @ grad_AB).mul_(weight[:, None]), halves[1])
            grads.append(torch.cat([grad_nA, grad_nB], 1))
        return torch.cat(grads), None


def _chunks(logits_NG: torch.Tensor, weight_N: torch.Tensor):
    """Rows whose (n, 2^B) tensors fit the byte budget together."""
    num_bits = logits_NG.shape[1]
    chunk = max(1, rows_per_chunk(2 ** (num_bits - num_bits // 2), logits_NG.device) // LIVE_COPIES)
    return zip(logits_NG.split(chunk), weight_N.split(chunk), strict=True)


def _joint(logits_nG: torch.Tensor) -> torch.Tensor:
    """Probabilities (n, 2^G) of all settings of G independent bits, the first one highest; doubled bit by bit."""
    on_nG, off_nG = logits_nG.sigmoid(), (-logits_nG).sigmoid()
    joint = logits_nG.new_ones((len(logits_nG), 1))
    for bit in reversed(range(logits_nG.shape[1])):
        joint = torch.cat([joint * off_nG[:, bit, None], joint * on_nG[:, bit, None]], 1)
    return joint


def _grad_of_logits(joint_nK: torch.Tensor, grad_nK: torch.Tensor, logits_nG: torch.Tensor) -> torch.Tensor:
    """d/d(log odds of a bit) of a code's probability p is p (bit - sigmoid(log odds))."""
    num_bits = logits_nG.shape[1]
    codes_K = torch.arange(2**num_bits, device=logits_nG.device)
    shifts_G = torch.arange(num_bits - 1, -1, -1, device=logits_nG.device)
    bits_KG = ((codes_K[:, None] >> shifts_G) & 1).to(joint_nK.dtype)
    flow_nK = joint_nK * grad_nK
    return flow_nK @ bits_KG - logits_nG.sigmoid() * flow_nK.sum(1, keepdim=True)
