"""Causal attention among very few positions on a CPU, such as the codes of one stack.

Thousands of products of 4 x 32 matrices pay for their calls and for bringing positions next to each other. Here all
pairs of positions that lie equally far apart are worked on at once, in the layout that the projections give.

Legend: B batch, L positions, A attention heads, F features per attention head, d distance of a key behind its query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rqtransformer.native import training

CLOSE = 4  # positions; with more of them products are faster


def attend_close(query_BLAF: Tensor, key_BLAF: Tensor, value_BLAF: Tensor) -> Tensor:
    """softmax(query key / sqrt(F)) value over a position and those before it, in the layout of the arguments.

    Worked out in fp32; the result has the type of the query.
    """
    out_BLAF: Tensor = _CloseAttention.apply(query_BLAF.float(), key_BLAF.float(), value_BLAF.float())
    return out_BLAF.to(query_BLAF.dtype)


class _CloseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BLAF: Tensor, key_BLAF: Tensor, value_BLAF: Tensor) -> Tensor:
        if training.trains(query_BLAF, key_BLAF, value_BLAF):
            given = query_BLAF.contiguous(), key_BLAF.contiguous(), value_BLAF.contiguous()
            out_BLAF, weights_BALL = training.attend_close(*given)
            ctx.save_for_backward(*given, weights_BALL)
            ctx.compiled = True
            return out_BLAF
        ctx.compiled = False
        scores_dBLA = _products(query_BLAF, key_BLAF, float("-inf")).mul_(query_BLAF.shape[-1] ** -0.5)
        weights_dBLA = scores_dBLA.softmax(dim=0)
        ctx.save_for_backward(query_BLAF, key_BLAF, value_BLAF, weights_dBLA)
        return _gather(weights_dBLA, value_BLAF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLAF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BLAF, key_BLAF, value_BLAF, weights_dBLA = ctx.saved_tensors
        if ctx.compiled:
            return training.attend_close_slopes(query_BLAF, key_BLAF, value_BLAF, weights_dBLA, grad_BLAF)
        slope_dBLA = _products(grad_BLAF, value_BLAF, 0.0)
        slope_dBLA -= (slope_dBLA * weights_dBLA).sum(dim=0)
        slope_dBLA.mul_(weights_dBLA).mul_(query_BLAF.shape[-1] ** -0.5)
        return _gather(slope_dBLA, key_BLAF), _scatter(slope_dBLA, query_BLAF), _scatter(weights_dBLA, grad_BLAF)


def _products(late_BLAF: Tensor, early_BLAF: Tensor, missing: float) -> Tensor:
    """Inner product of every position with the one d before it; `missing` where there is none."""
    length = late_BLAF.shape[1]
    products_dBLA = late_BLAF.new_full((length, *late_BLAF.shape[:3]), missing)
    for distance in range(length):
        pairs_BLAF = late_BLAF[:, distance:] * early_BLAF[:, : length - distance]
        torch.sum(pairs_BLAF, dim=-1, out=products_dBLA[distance, :, distance:])
    return products_dBLA


def _gather(weights_dBLA: Tensor, early_BLAF: Tensor) -> Tensor:
    """For every position the weighted sum over itself and those before it."""
    length = early_BLAF.shape[1]
    total_BLAF = weights_dBLA[0].unsqueeze(-1) * early_BLAF
    for distance in range(1, length):
        weight_BLA1 = weights_dBLA[distance, :, distance:].unsqueeze(-1)
        total_BLAF[:, distance:].addcmul_(weight_BLA1, early_BLAF[:, : length - distance])
    return total_BLAF


def _scatter(weights_dBLA: Tensor, late_BLAF: Tensor) -> Tensor:
    """For every position the weighted sum over itself and those after it."""
    length = late_BLAF.shape[1]
    total_BLAF = weights_dBLA[0].unsqueeze(-1) * late_BLAF
    for distance in range(1, length):
        weight_BLA1 = weights_dBLA[distance, :, distance:].unsqueeze(-1)
        total_BLAF[:, : length - distance].addcmul_(weight_BLA1, late_BLAF[:, distance:])
    return total_BLAF
