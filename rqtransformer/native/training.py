"""The compiled functions of a training step; each takes what `calls.serves` says yes to, contiguous.

Legend: N stacks, L codes of a stack, A attention heads, F features per attention head, n rows, D code depth,
V vocabulary, K codes that have a target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rqtransformer.native.calls import address, compiled, serves


def trains(*tensors: Tensor) -> bool:
    """Whether the compiled functions take these tensors in a step that is neither traced nor turned into a graph."""
    return not torch.compiler.is_compiling() and all(map(serves, tensors))


def trains_widened(tensor: Tensor) -> bool:
    """Whether the compiled functions take this tensor once it is fp32, which holds all that it holds."""
    if type(tensor) is not Tensor or tensor.dtype not in (torch.float32, torch.bfloat16):
        return False
    return trains(tensor.new_empty(0, dtype=torch.float32))


def drop(x: Tensor, draws: Tensor, first_kept: int, scale: float, residual: Tensor | None = None) -> Tensor:
    """residual + scale * x where the draw (int16) is `first_kept` or more, residual elsewhere."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = torch.empty_like(x)
    compiled().rq_drop(
        x.data_ptr(),
        draws.data_ptr(),
        first_kept,
        scale,
        address(residual),
        out.data_ptr(),
        x.numel(),
        torch.get_num_threads(),
    )
    return out


def attend_close(query_NLAF: Tensor, key_NLAF: Tensor, value_NLAF: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention among the codes of a stack, and its weights (N, A, L, L)."""
    num, length, heads, features = query_NLAF.shape
    out_NLAF = torch.empty_like(query_NLAF)
    weights_NALL = query_NLAF.new_empty(num, heads, length, length)
    places = (tensor.data_ptr() for tensor in (query_NLAF, key_NLAF, value_NLAF, out_NLAF, weights_NALL))
    compiled().rq_attend_close(*places, num, length, heads, features, torch.get_num_threads())
    return out_NLAF, weights_NALL


def attend_close_slopes(
    query_NLAF: Tensor, key_NLAF: Tensor, value_NLAF: Tensor, weights_NALL: Tensor, slope_NLAF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What comes back to query, key and value from the slope of the output."""
    num, length, heads, features = query_NLAF.shape
    slopes = torch.empty_like(query_NLAF), torch.empty_like(query_NLAF), torch.empty_like(query_NLAF)
    given = (query_NLAF, key_NLAF, value_NLAF, weights_NALL, slope_NLAF.contiguous())
    places = (tensor.data_ptr() for tensor in (*given, *slopes))
    compiled().rq_attend_close_slopes(*places, num, length, heads, features, torch.get_num_threads())
    return slopes


def cross_entropy_rows(
    logits_nV: Tensor, codes_n: Tensor, scores_nK: Tensor | None, eps: float, slope_nV: Tensor
) -> Tensor:
    """Sums over rows of loss, code NLL and hits (3,); the slope of the loss into `slope_nV`.

    Args:
        logits_nV, slope_nV: any rows, each contiguous.
        codes_n: int64.
        scores_nK: the targets before their softmax, contiguous; overwritten. None: the codes are the targets.
        eps: in the logarithm.
    """
    num, vocabulary = logits_nV.shape
    loss_3n = logits_nV.new_empty(3, num)
    compiled().rq_cross_entropy_rows(
        logits_nV.data_ptr(),
        logits_nV.stride(0),
        codes_n.data_ptr(),
        codes_n.stride(0),
        address(scores_nK),
        0 if scores_nK is None else scores_nK.shape[1],
        eps,
        slope_nV.data_ptr(),
        slope_nV.stride(0),
        loss_3n.data_ptr(),
        num,
        vocabulary,
        torch.get_num_threads(),
    )
    return loss_3n.sum(dim=1)
