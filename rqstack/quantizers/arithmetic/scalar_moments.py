"""Moments of every scalar over a batch, and how far they are from where they should be.

Legend: N vectors, C scalars of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.sync import all_reduce_sum, differentiable_all_reduce

SMALLEST_SPREAD = 1e-8


class ScalarMoments(NamedTuple):
    """Mean, variance (unbiased), skewness and excess kurtosis of every scalar, (C,) each."""

    mean: Tensor
    variance: Tensor
    skewness: Tensor
    kurtosis: Tensor


@dataclass(frozen=True)
class MomentTargets:
    """(target, weight) of every moment; a weight of 0 leaves it free."""

    mean: tuple[float, float] = (0.0, 0.1)
    variance: tuple[float, float] = (1.0, 0.07)
    skewness: tuple[float, float] = (0.0, 0.0)
    kurtosis: tuple[float, float] = (0.0, 0.0)


def scalar_moments(x_NC: Tensor, mask_N: Tensor | None = None, over_ranks: bool = False) -> ScalarMoments:
    """Moments over the rows that count, differentiable.

    over_ranks: the rows of all processes, which must all call it; gradients averaged over ranks are then those of one
    process with all rows. A single row has variance 0.
    """
    kept_N1 = x_NC.new_ones((len(x_NC), 1)) if mask_N is None else mask_N[:, None].to(x_NC.dtype)
    x_NC = x_NC if mask_N is None else torch.where(mask_N[:, None], x_NC, 0.0)
    count = kept_N1.sum()
    if over_ranks:
        all_reduce_sum(count)
    total = differentiable_all_reduce if over_ranks else _alone
    mean_C = total(x_NC.sum(0)) / count.clamp(min=1)
    offset_NC = (x_NC - mean_C) * kept_N1
    square_NC = offset_NC.square()
    powers = [square_NC.sum(0), (square_NC * offset_NC).sum(0), square_NC.square().sum(0)]
    second_C, third_C, fourth_C = total(torch.stack(powers)).unbind()
    variance_C = second_C / (count - 1).clamp(min=1)
    spread_C = variance_C.clamp(min=SMALLEST_SPREAD**2).sqrt()
    count = count.clamp(min=1)
    return ScalarMoments(mean_C, variance_C, third_C / count / spread_C**3, fourth_C / count / spread_C**4 - 3.0)


def moment_loss(found: ScalarMoments, targets: MomentTargets) -> Tensor:
    """Weighted sum over the moments of the mean over scalars of the squared distance to the target; scalar."""
    loss = torch.zeros_like(found.mean[:1].sum())
    for name, value_C in found._asdict().items():
        target, weight = getattr(targets, name)
        if weight > 0:
            loss = loss + weight * (value_C - target).square().mean()
    return loss


def _alone(tensor: Tensor) -> Tensor:
    return tensor
