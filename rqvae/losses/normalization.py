"""Normalisation layers of the discriminator whose statistics cover the images of all ranks.

Legend: B batch, C channels, H W map size, N = B*H*W values per channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic import sync


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; the gradient of every rank's result flows back to every rank's input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        sync.all_reduce_sum(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        sync.all_reduce_sum(total)
        return total


def _global_moments(x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C), biased variance (C) and count over all ranks. Two passes: no cancellation in E[x^2] - E[x]^2."""
    count = x_BCHW.new_full((1,), x_BCHW.numel() // x_BCHW.shape[1])
    total = _AllReduceSum.apply(torch.cat([x_BCHW.sum((0, 2, 3)), count]))
    mean_C, count = total[:-1] / total[-1], total[-1].detach()
    squares_C = _AllReduceSum.apply((x_BCHW - mean_C[:, None, None]).square().sum((0, 2, 3)))
    return mean_C, squares_C / count, count


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all ranks, on any device; in one process and in eval mode a BatchNorm2d.

    Not derived from torch's SyncBatchNorm, which data-parallel wrapping refuses on CPUs; same state dict.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or sync.world_size() == 1:
            return super().forward(x_BCHW)
        mean_C, var_C, count = _global_moments(x_BCHW.float())
        self._update_running(mean_C.detach(), var_C.detach() * count / (count - 1).clamp_min(1))
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        shift_C = self.bias - mean_C * scale_C
        return (x_BCHW.float() * scale_C[:, None, None] + shift_C[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, unbiased_var_C: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None, "cumulative averages are not kept over ranks"
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(unbiased_var_C, self.momentum)


class ActNorm(nn.Module):
    """Per-channel shift and scale, set by the first training batch (of all ranks) to zero mean and unit deviation.

    scale * (x + loc) (Kingma & Dhariwal 2018, sec. 3.1), learned from then on. State: `loc`, `scale` (1, C, 1, 1) and
    the uint8 scalar `initialized`.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._checked = False  # spares every later forward the look at a device scalar

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._checked = False

    @torch.no_grad()
    def _initialize(self, x_BCHW: Tensor) -> None:
        mean_C, var_C, count = _global_moments(x_BCHW.float())
        std_C = (var_C * count / (count - 1).clamp_min(1)).sqrt()
        self.loc.copy_(-mean_C.view_as(self.loc))
        self.scale.copy_(1.0 / (std_C + 1e-6).view_as(self.scale))
        self.initialized.fill_(1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training and not self._checked:
            if self.initialized.item() == 0:
                self._initialize(x_BCHW)
            self._checked = True
        return self.scale * (x_BCHW + self.loc)
