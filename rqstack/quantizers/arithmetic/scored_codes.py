"""Codes by score: minus the distance itself, not its square, or the inner product; and losses over all scores of a row.

Legend: N vectors, n rows of a chunk, P positions, R rows of a position, X codebooks side by side, E code-vector size,
K codebook size, T best codes of a row.

The rest of the library draws and softens with squared distances, or with cosines as their equivalent. Scores here are
those in which some published models were trained: the softmax of minus a distance, or of an inner product with code
vectors of any length. All of it runs chunk by chunk under the byte budget of `nearest.py`; the backward pass of a loss
computes every chunk again instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rqstack.quantizers.arithmetic.nearest import check_temperature, nearest_codes, rows_per_chunk
from rqstack.quantizers.arithmetic.nearest_k import nearest_k
from rqstack.quantizers.arithmetic.precision import full_precision_matmul

LEAST_SQUARE = 1e-8  # squared distances below it have no gradient
LEAST_PROB = 1e-5  # of a logarithm in the usage entropy
PICK_COPIES = 3  # (n, K) tensors alive at once in a search
LIVE_COPIES = 4  # (n, K) tensors alive at once in the backward pass of a chunk


def code_scores(x_NE: Tensor, weight_KE: Tensor, inner: bool) -> Tensor:
    """(N, K) scores, the larger the nearer: inner products, or minus the distance. The result itself is N x K."""
    if inner:
        return x_NE @ weight_KE.T
    offset_K = weight_KE.square().sum(1)
    square_NK = torch.addmm(offset_K, x_NE, weight_KE.T, alpha=-2) + x_NE.square().sum(1, keepdim=True)
    return -square_NK.clamp(min=LEAST_SQUARE).sqrt()


def _pick(
    x_NE: Tensor,
    weight_KE: Tensor,
    inner: bool,
    codes: Tensor,
    pick: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Fill `codes` with `pick(ranks (n, K), rows (n, E))` of every chunk. Ranks grow with the scores of a row: x.e, or
    2 x.e - |e|^2."""
    offset_K = weight_KE.new_zeros(len(weight_KE)) if inner else -weight_KE.square().sum(1)
    step = max(1, min(rows_per_chunk(len(weight_KE), x_NE.device) // PICK_COPIES, len(x_NE)))
    scratch = x_NE.new_empty((step, len(weight_KE)))
    with full_precision_matmul(x_NE.device):
        for start in range(0, len(x_NE), step):
            part = x_NE[start : start + step]
            ranks = torch.addmm(offset_K, part, weight_KE.T, alpha=1 if inner else 2, out=scratch[: len(part)])
            codes[start : start + step] = pick(ranks, part)
    return codes


@torch.no_grad()
def best_codes(x_NE: Tensor, weight_KE: Tensor, inner: bool) -> Tensor:
    """The code of the highest score of every row (N,), the lowest index among equals."""
    return nearest_codes(x_NE, weight_KE, inner)


@torch.no_grad()
def top_codes(x_NE: Tensor, weight_KE: Tensor, num_best: int, inner: bool) -> Tensor:
    """The T codes of the highest scores of every row, best first (N, T)."""
    if not inner:
        return nearest_k(x_NE, weight_KE, num_best)[0]
    empty_NT = torch.empty((len(x_NE), num_best), dtype=torch.int64, device=x_NE.device)
    return _pick(x_NE.float(), weight_KE.float(), inner, empty_NT, lambda ranks, _: ranks.topk(num_best, 1).indices)


@torch.no_grad()
def drawn_codes(x_NE: Tensor, weight_KE: Tensor, temp: float, inner: bool, num_draws: int | None = None) -> Tensor:
    """One draw per row from softmax(score / temp) (N,), or `num_draws` different ones (N, T), by Gumbel-max."""
    check_temperature(temp)

    def pick(ranks: Tensor, rows_nE: Tensor) -> Tensor:
        if not inner:
            square = rows_nE.square().sum(1, keepdim=True).sub(ranks).clamp_(min=LEAST_SQUARE)
            ranks = square.sqrt_().neg_()
        perturbed = ranks.div_(temp).sub_(torch.empty_like(ranks).exponential_().log_())
        return perturbed.argmax(1) if num_draws is None else perturbed.topk(num_draws, 1).indices

    shape = (len(x_NE),) if num_draws is None else (len(x_NE), num_draws)
    empty = torch.empty(shape, dtype=torch.int64, device=x_NE.device)
    return _pick(x_NE.float(), weight_KE.float(), inner, empty, pick)


def _chunk_rows(weight: Tensor) -> int:
    return max(1, rows_per_chunk(weight.shape[-2], weight.device) // LIVE_COPIES)


def _again(part: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`part(*tensors)`, computed a second time in the backward pass instead of kept."""
    return checkpoint(part, *tensors, use_reentrant=False, preserve_rng_state=False)


def expected_by_score(x_NE: Tensor, weight_KE: Tensor, temp: float, inner: bool) -> Tensor:
    """Mean code vector (N, E) of softmax(score / temp), differentiable in both arguments."""
    check_temperature(temp)

    def part(x_nE: Tensor, weight: Tensor) -> Tensor:
        return (code_scores(x_nE, weight, inner) / temp).softmax(1) @ weight

    with full_precision_matmul(x_NE.device):
        return torch.cat([_again(part, rows, weight_KE) for rows in x_NE.split(_chunk_rows(weight_KE))])


def score_cross_entropy(x_XNE: Tensor, weight_XKE: Tensor, codes_XN: Tensor, inner: bool) -> Tensor:
    """Mean of -log softmax(score) at the row's code over all rows whose code is not -1; 0 when there is none."""

    def part(x_nE: Tensor, weight_KE: Tensor, codes_n: Tensor) -> Tensor:
        return F.cross_entropy(code_scores(x_nE, weight_KE, inner), codes_n, ignore_index=-1, reduction="sum")

    step, total = _chunk_rows(weight_XKE), x_XNE.new_zeros(())
    with full_precision_matmul(x_XNE.device):
        for x_NE, weight_KE, codes_N in zip(x_XNE, weight_XKE, codes_XN, strict=True):
            for rows, codes_n in zip(x_NE.split(step), codes_N.split(step), strict=True):
                total = total + _again(part, rows, weight_KE, codes_n)
    return total / (codes_XN != -1).sum().clamp(min=1)


def distribution_entropy(probs_PK: Tensor) -> Tensor:
    """Entropy (nats) of every distribution (P,)."""
    return -(probs_PK * probs_PK.clamp(min=LEAST_PROB).log()).sum(-1)


def usage_entropy_by_position(
    x_XPRE: Tensor,
    weight_XKE: Tensor,
    temp: float,
    inner: bool,
    valid_PR: Tensor | None = None,
) -> Tensor:
    """Entropy of the mean of softmax(score / temp) over the rows and codebooks of a position; mean over positions.

    Rows where `valid_PR` is False do not count, nor do positions without a row that counts.
    """
    check_temperature(temp)
    books, positions, rows, _ = x_XPRE.shape
    if valid_PR is None:
        valid_PR = torch.ones(positions, rows, dtype=torch.bool, device=x_XPRE.device)
    row_step = min(rows, _chunk_rows(weight_XKE))
    position_step = max(1, _chunk_rows(weight_XKE) // row_step)

    def part(x_prE: Tensor, weight_KE: Tensor, valid_pr: Tensor) -> Tensor:
        probs = (code_scores(x_prE.flatten(0, 1), weight_KE, inner) / temp).softmax(1)
        return torch.where(valid_pr[..., None], probs.view(*valid_pr.shape, -1), 0.0).sum(1)

    def entropies(x_XpRE: Tensor, weight_XKE: Tensor, valid_pR: Tensor) -> Tensor:
        sums_pK = x_XpRE.new_zeros(())
        for x_pRE, weight_KE in zip(x_XpRE, weight_XKE, strict=True):
            blocks = zip(x_pRE.split(row_step, 1), valid_pR.split(row_step, 1), strict=True)
            for x_prE, valid_pr in blocks:
                sums_pK = sums_pK + _again(part, x_prE, weight_KE, valid_pr)
        mean_pK = sums_pK / (books * valid_pR.sum(1)).clamp(min=1)[:, None]
        return distribution_entropy(mean_pK).sum()

    with full_precision_matmul(x_XPRE.device):
        groups = zip(x_XPRE.split(position_step, 1), valid_PR.split(position_step), strict=True)
        total = torch.stack([_again(entropies, x, weight_XKE, valid) for x, valid in groups]).sum()
    return total / valid_PR.any(1).sum().clamp(min=1)
