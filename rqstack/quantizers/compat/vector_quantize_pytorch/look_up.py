"""How `VectorQuantize` finds codes: in a table for all vectors, or among code vectors of each vector's own.

Legend: X codebooks side by side, B batch, R rows (vectors), E code-vector size, K codebook size, T best codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.scored_codes import best_codes, drawn_codes, top_codes


class Found(NamedTuple):
    """A look-up: codes (X, R) or (X, R, T), their vectors (..., E), the code vectors searched (X, K, E), and, where
    every vector has code vectors of its own, all scores (X, R, K)."""

    codes: Tensor
    vectors: Tensor
    weight_XKE: Tensor
    scores_XRK: Tensor | None


def table_codes(x_XRE: Tensor, weight_XKE: Tensor, cosine: bool, temp: float | None, topk: int | None) -> Found:
    """Nearest codes; temp: drawn from softmax(score / temp) instead. The vectors have the gradient of the table."""
    codes = []
    for x_RE, weight_KE in zip(x_XRE.detach(), weight_XKE.detach(), strict=True):
        if temp is not None:
            codes.append(drawn_codes(x_RE, weight_KE, temp, cosine, topk))
        elif topk is not None:
            codes.append(top_codes(x_RE, weight_KE, topk, cosine))
        else:
            codes.append(best_codes(x_RE, weight_KE, cosine))
    vectors = [F.embedding(c, weight_KE) for c, weight_KE in zip(codes, weight_XKE, strict=True)]
    return Found(side_by_side(codes), side_by_side(vectors), weight_XKE, None)


def own_codes(
    x_XRE: Tensor,
    weight_XKE: Tensor,
    own_XRKE: Tensor,
    cosine: bool,
    temp: float | None,
    topk: int | None,
    keep_scores: bool,
) -> Found:
    """Like `table_codes`, where every vector has K code vectors of its own. keep_scores: with their gradient."""
    with torch.set_grad_enabled(keep_scores and torch.is_grad_enabled()):
        if cosine:
            scores_XRK = (own_XRKE @ x_XRE[..., None])[..., 0]
        else:
            scores_XRK = -F.pairwise_distance(x_XRE[..., None, :], own_XRKE)
    ranks_XRK = scores_XRK.detach()
    if temp is not None:
        ranks_XRK = ranks_XRK / temp - torch.empty_like(ranks_XRK).exponential_().log_()
    codes_XRT = ranks_XRK.topk(topk, -1).indices if topk else ranks_XRK.argmax(-1, keepdim=True)
    index_XRTE = codes_XRT[..., None].expand(*codes_XRT.shape, own_XRKE.shape[-1])
    vectors_XRTE = own_XRKE.gather(2, index_XRTE)
    if topk is None:
        return Found(codes_XRT[..., 0], vectors_XRTE[:, :, 0], weight_XKE, scores_XRK)
    return Found(codes_XRT, vectors_XRTE, weight_XKE, scores_XRK)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """Stacked without a copy where there is one."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)
