"""The loss terms of `VectorQuantize`, each a call of the core.

Legend: B batch, N positions, X codebooks side by side, R rows, P positions, E code-vector size, K codebook size,
T best codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.code_losses import VectorLosses, mean_square, orthogonal_term
from rqstack.quantizers.arithmetic.scored_codes import (
    distribution_entropy,
    score_cross_entropy,
    usage_entropy_by_position,
)
from rqstack.quantizers.compat.vector_quantize_pytorch.ema_codebook import Codebook
from rqstack.quantizers.compat.vector_quantize_pytorch.look_up import Found


class LossBreakdown(NamedTuple):
    """The unweighted terms of the loss; 0 where a term is off."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


def commitment(rows_XRE: Tensor, vectors_XRE: Tensor, valid_R: Tensor | None) -> Tensor:
    """Mean squared difference over the rows that count."""
    mask = None if valid_R is None else valid_R.repeat(len(rows_XRE))
    return mean_square(rows_XRE.flatten(0, 1), vectors_XRE.to(rows_XRE.dtype).flatten(0, 1), mask)


def commitment_of_each(rows_XRE: Tensor, vectors_XRTE: Tensor, valid_R: Tensor | None) -> Tensor:
    """Mean squared difference to each of the T best codes of a row (X, R, T); 0 for rows that do not count."""
    each = (vectors_XRTE.to(rows_XRE.dtype) - rows_XRE[:, :, None]).square().mean(-1)
    return each if valid_R is None else torch.where(valid_R[:, None], each, 0.0)


def cross_entropy(book: Codebook, rows_XRE: Tensor, found: Found, codes_XR: Tensor, valid_R: Tensor | None) -> Tensor:
    """-log softmax of the scores at the given codes, over rows that count and whose code is not -1."""
    codes_XR = codes_XR if valid_R is None else codes_XR.masked_fill(~valid_R, -1)
    if found.scores_XRK is None:
        return score_cross_entropy(rows_XRE.float(), found.weight_XKE, codes_XR, book.use_cosine_sim)
    total = F.cross_entropy(found.scores_XRK.flatten(0, 1), codes_XR.flatten(), ignore_index=-1, reduction="sum")
    return total / (codes_XR != -1).sum().clamp(min=1)


def diversity(
    book: Codebook,
    rows_XRE: Tensor,
    found: Found,
    grid: tuple[int, int],
    temp: float,
    mask_BN: Tensor | None,
) -> Tensor:
    """Minus the entropy of the soft use of the codes at a position, over the batch and heads; mean over positions.

    grid: (B, N).
    """
    batch, positions = grid

    def by_position(rows_XR: Tensor) -> Tensor:
        """(X, R, ...) -> (X, P, rows of the position, ...); a row of heads is kept together."""
        books, _, *rest = rows_XR.shape
        return rows_XR.view(books, batch, positions, -1, *rest).transpose(1, 2).flatten(2, 3)

    rows_XPRE = by_position(rows_XRE.float())
    shared_heads = rows_XPRE.shape[2] // batch
    valid_PR = None if mask_BN is None else mask_BN.T.repeat_interleave(shared_heads, 1)
    if found.scores_XRK is None:
        return -usage_entropy_by_position(rows_XPRE, found.weight_XKE, temp, book.use_cosine_sim, valid_PR)
    probs_XPRK = by_position((found.scores_XRK / temp).softmax(-1))
    if valid_PR is None:
        return -distribution_entropy(probs_XPRK.mean((0, 2))).mean()
    counts_P = valid_PR.sum(1)
    sums_PK = torch.where(valid_PR[..., None], probs_XPRK, 0.0).sum((0, 2))
    entropies_P = distribution_entropy(sums_PK / (counts_P * len(probs_XPRK)).clamp(min=1)[:, None])
    return -entropies_P.sum() / (counts_P > 0).sum().clamp(min=1)


def orthogonal(
    book: Codebook, codes_XR: Tensor, valid_R: Tensor | None, active_only: bool, max_codes: int | None
) -> Tensor:
    """Mean squared cosine of the code vectors as they are after this step's update."""
    settings = VectorLosses(orthogonal=1.0, orthogonal_active=active_only, orthogonal_max=max_codes)
    now_XKE = book.embed.clone().float()  # later forwards of the step change the codebook before the backward pass
    if codes_XR.ndim > 2:
        valid_R = None if valid_R is None else valid_R.repeat_interleave(codes_XR.shape[-1])
        codes_XR = codes_XR.flatten(1)
    return orthogonal_term(settings, list(now_XKE), list(codes_XR), valid_R)
