"""What a vector quantizer adds to the loss, and soft code assignments, without an N x K or K x K matrix in memory.

Legend: N vectors, n rows of a chunk, E code-vector size, K codebook size, A codes taken part in a term.

Soft assignments are softmax(-squared distance / temp). They run chunk by chunk; the backward pass computes every chunk
again instead of keeping it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.nearest import check_temperature, rows_per_chunk
from rqstack.quantizers.arithmetic.precision import full_precision_matmul
from rqstack.quantizers.arithmetic.signatures import checks_arguments

LIVE_COPIES = 4  # (n, K) tensors alive at once in the backward pass of a chunk


@checks_arguments
@dataclass(frozen=True)
class VectorLosses:
    """Weights of the loss terms of a `VectorQuantizer`, and their settings; a weight of 0 leaves a term out.

    Attributes:
        commitment: weight of the mean squared distance that pulls vectors to their codes.
        cross_entropy: weight of -log soft assignment to the own code instead of a distance.
        codebook: weight of the mean squared distance that pulls learned code vectors to their vectors.
        diversity: weight of minus the entropy of the mean soft assignment.
        temp: of the soft assignments softmax(-squared distance / temp).
        orthogonal: weight of the orthogonality of learned code vectors.
        orthogonal_active: of those alone that the batch chose.
        orthogonal_max: of at most so many code vectors, drawn. null: of all.
    """

    commitment: float = 1.0
    cross_entropy: float = 0.0
    codebook: float = 1.0
    diversity: float = 0.0
    temp: float = 1.0
    orthogonal: float = 0.0
    orthogonal_active: bool = False
    orthogonal_max: int | None = None


def mean_square(one_NE: Tensor, other_NE: Tensor, mask_N: Tensor | None) -> Tensor:
    """Mean squared difference over the rows that count; 0 when none does."""
    if mask_N is None and len(one_NE):
        return F.mse_loss(one_NE, other_NE)
    if mask_N is None:  # a sum of nothing, with a gradient
        return (one_NE - other_NE).sum()
    kept = torch.where(mask_N[:, None], one_NE - other_NE, 0.0).square().sum()
    return kept / (mask_N.sum() * one_NE.shape[1]).clamp(min=1)


def _by_chunks(
    part: Callable[[Tensor, Tensor, slice], Tensor],
    x_NE: Tensor,
    weight_KE: Tensor,
    temp: float,
) -> Iterator[Tensor]:
    """`part(logits (n, K), weight, rows)` of every chunk of rows, recomputed in the backward pass; one at a time, so
    that (K,) results can be added up without all being held."""
    check_temperature(temp)
    norm_K = weight_KE.square().sum(1)

    def one(x_nE: Tensor, weight: Tensor, norm: Tensor, rows: slice) -> Tensor:
        logits_nK = torch.addmm(norm, x_nE, weight.T, beta=-1 / temp, alpha=2 / temp)
        return part(logits_nK, weight, rows)

    step = max(1, rows_per_chunk(len(weight_KE), x_NE.device) // LIVE_COPIES)
    with full_precision_matmul(x_NE.device):
        for start in range(0, max(1, len(x_NE)), step):
            rows = slice(start, start + step)
            yield checkpoint(one, x_NE[rows], weight_KE, norm_K, rows, use_reentrant=False, preserve_rng_state=False)


def expected_vectors(x_NE: Tensor, weight_KE: Tensor, temp: float) -> Tensor:
    """Mean code vector of every row's soft assignment (N, E), differentiable in both arguments.

    Straight through it, a code drawn by Gumbel-max gets the gradient of the Gumbel-softmax estimator averaged over the
    noise. Jang et al., Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144.
    """
    return torch.cat(list(_by_chunks(lambda logits, weight, rows: logits.softmax(1) @ weight, x_NE, weight_KE, temp)))


def code_cross_entropy(
    x_NE: Tensor, weight_KE: Tensor, codes_N: Tensor, temp: float, mask_N: Tensor | None = None
) -> Tensor:
    """Mean over the rows that count of -log of the soft assignment to the row's own code; scalar."""

    def part(logits_nK: Tensor, weight: Tensor, rows: slice) -> Tensor:
        losses_n = F.cross_entropy(logits_nK, codes_N[rows], reduction="none")
        return (losses_n if mask_N is None else torch.where(mask_N[rows], losses_n, 0.0)).sum()

    counted = max(1, len(x_NE)) if mask_N is None else mask_N.sum().clamp(min=1)
    return torch.stack(list(_by_chunks(part, x_NE, weight_KE, temp))).sum() / counted


def negative_usage_entropy(x_NE: Tensor, weight_KE: Tensor, temp: float, mask_N: Tensor | None = None) -> Tensor:
    """Minus the entropy (nats) of the soft assignment averaged over the rows that count: lowest for uniform use.

    Where x needs a gradient the rows are those of all processes, which then must all call it and run its backward pass.
    """

    def part(logits_nK: Tensor, weight: Tensor, rows: slice) -> Tensor:
        probs_nK = logits_nK.softmax(1)
        return (probs_nK if mask_N is None else torch.where(mask_N[rows, None], probs_nK, 0.0)).sum(0)

    total_K: Tensor = functools.reduce(operator.add, _by_chunks(part, x_NE, weight_KE, temp))
    counted = torch.full_like(total_K[0], len(x_NE)) if mask_N is None else mask_N.sum().float()
    if x_NE.requires_grad:
        total_K = sync.differentiable_all_reduce(total_K)
        sync.all_reduce_sum(counted)
    mean_K = total_K / counted.clamp(min=1)
    return torch.xlogy(mean_K, mean_K.clamp(min=torch.finfo(torch.float32).tiny)).sum()


def orthogonality(weight_AE: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of code vectors, a vector with itself left out of the count; scalar.

    |W W^T|^2 / A^2 - 1 / A with unit rows, computed as |W^T W|^2: no A x A matrix when A is large.
    Shin et al., Translation-equivariant Image Quantizer for Bi-directional Image-Text Generation, arXiv 2112.00384.
    """
    unit_AE = F.normalize(weight_AE, dim=1)
    num_codes, dim = unit_AE.shape
    with full_precision_matmul(unit_AE.device):
        gram = unit_AE.T @ unit_AE if dim < num_codes else unit_AE @ unit_AE.T
    return gram.square().sum() / num_codes**2 - 1 / num_codes


def vector_terms(
    weights: VectorLosses,
    x_NE: Tensor,
    vectors_NE: Tensor,
    codes_N: Tensor,
    weight_KE: Tensor,
    mask_N: Tensor | None,
) -> dict[str, Tensor]:
    """The weighted loss terms of one head. A code vector gets a gradient from 'codebook' only, and if it needs one."""
    terms, fixed_KE = {}, weight_KE.detach()
    if weights.commitment > 0:
        terms["commitment"] = weights.commitment * mean_square(x_NE, vectors_NE.detach(), mask_N)
    if weights.cross_entropy > 0:
        terms["cross_entropy"] = weights.cross_entropy * code_cross_entropy(
            x_NE, fixed_KE, codes_N, weights.temp, mask_N
        )
    if weights.codebook > 0 and vectors_NE.requires_grad:
        terms["codebook"] = weights.codebook * mean_square(vectors_NE, x_NE.detach(), mask_N)
    if weights.diversity > 0:
        terms["diversity"] = weights.diversity * negative_usage_entropy(x_NE, fixed_KE, weights.temp, mask_N)
    return terms


def orthogonal_term(weights: VectorLosses, books: list[Tensor], codes: list[Tensor], mask_N: Tensor | None) -> Tensor:
    """Weighted orthogonality, averaged over codebooks (K, E). codes: (N,) of every head; head h uses book h mod their
    number. Draws from the global generator where more codes take part than allowed."""
    values = []
    for index, weight_KE in enumerate(books):
        if weights.orthogonal_active:
            used = torch.cat(codes[index :: len(books)])
            used = used if mask_N is None else used[mask_N.repeat(len(used) // len(mask_N))]
            weight_KE = weight_KE[used.unique()]
        if weights.orthogonal_max is not None and len(weight_KE) > weights.orthogonal_max:
            drawn = torch.randperm(len(weight_KE), device=weight_KE.device)[: weights.orthogonal_max]
            weight_KE = weight_KE[drawn]
        values.append(orthogonality(weight_KE) if len(weight_KE) else weight_KE.sum())
    return weights.orthogonal * torch.stack(values).mean()
