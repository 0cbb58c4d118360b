"""Dropout at the end of a branch, and the sum with what goes around the branch.

torch draws the mask of dropout on a CPU number by number, on one thread, and takes as long for it as for a small matrix
product. Here sixteen random bits stand for one element, four elements in one draw.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer.native import training

LEVELS = 2**16  # of one element's random number
PER_DRAW = 4  # elements in one draw of 64 bits


def drop_and_add(x: Tensor, probability: float, residual: Tensor | None = None) -> Tensor:
    """residual + dropout(x); elements are dropped independently, the others scaled so that the mean stays.

    Args:
        x: of any shape and floating type.
        probability: of an element to become 0; on a CPU a multiple of 1/65,536 is taken, the nearest.
        residual: like x; left out, nothing is added.
    """
    if probability == 0.0:
        return x if residual is None else residual + x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        dropped = F.dropout(x, probability)
        return dropped if residual is None else residual + dropped
    if residual is not None and residual.dtype == torch.float32:
        x = x.float()  # which the sum would make of it as well: a branch under autocast to bf16
    num_dropped = round(probability * LEVELS)
    around = (x,) if residual is None else (x, residual)
    if num_dropped < LEVELS and training.trains(*around) and around[-1].shape == x.shape:
        total: Tensor = _AddDropped.apply(residual, x, num_dropped)
        return total
    scale = keep_scale(x, probability)
    if residual is not None and residual.dtype == x.dtype:
        total = _AddScaled.apply(residual, x, scale)
        return total
    return x * scale if residual is None else residual + x * scale


class _AddScaled(torch.autograd.Function):
    """residual + x * scale in one pass; going back, autograd's own would scale `scale` anew, by its factor of 1."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(residual, x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (scale,) = ctx.saved_tensors
        return grad, grad * scale if ctx.needs_input_grad[1] else None, None


class _AddDropped(torch.autograd.Function):
    """residual + dropout(x) as compiled code, with the same draws; going back, x's share by those draws again."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor | None, x: Tensor, num_dropped: int) -> Tensor:
        draws = _draw(x)
        ctx.save_for_backward(draws)
        ctx.first_kept, ctx.scale = num_dropped - LEVELS // 2, LEVELS / (LEVELS - num_dropped)
        return training.drop(x, draws, ctx.first_kept, ctx.scale, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (draws,) = ctx.saved_tensors
        residual = grad if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return residual, None, None
        if torch.is_grad_enabled() or not training.trains(grad):  # a gradient of the gradient is asked for
            return residual, grad * (draws >= ctx.first_kept).view(grad.shape) * ctx.scale, None
        return residual, training.drop(grad, draws, ctx.first_kept, ctx.scale), None


def keep_scale(like: Tensor, probability: float) -> Tensor:
    """A draw of 0 (dropped) or 1 / (1 - probability) for every element; torch's global CPU generator."""
    num_dropped = round(probability * LEVELS)
    if num_dropped == LEVELS:
        return torch.zeros_like(like)
    levels = _draw(like).view(like.shape)
    kept = torch.empty(like.shape, dtype=like.dtype)  # a comparison that writes numbers: no mask to be converted
    return torch.ge(levels, num_dropped - LEVELS // 2, out=kept).mul_(LEVELS / (LEVELS - num_dropped))


def _draw(like: Tensor) -> Tensor:
    """One of 65,536 levels for every element (int16), in one row."""
    draws = torch.empty(-(-like.numel() // PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[: like.numel()]
