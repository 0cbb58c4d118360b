"""The parts of the encoder and the decoder. Module names are those of the published checkpoints.

Legend: B batch, C channels, H W grid, T = H*W positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.triton_kernels import alike, trial_numbers, use_kernel
from rqvae.config import NORM_GROUPS


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation over 32 groups."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def normalised(norm: nn.GroupNorm, x_BCHW: Tensor, silu: bool = True) -> Tensor:
    """The norm, and SiLU after it where wanted: PyTorch's, or on a GPU our kernels for channels-last maps.

    Compiled code is PyTorch's, which its compiler fuses by itself. SiLU takes the norm's place in memory where no
    gradient asks for it.
    """
    if not torch.compiler.is_compiling() and use_kernel(norm_trial, x_BCHW.device):
        from rqvae import group_norm_triton  # here: a CPU build of torch comes without Triton

        if group_norm_triton.serves(norm, x_BCHW):
            return group_norm_triton.group_norm(norm, x_BCHW, silu)
    normed_BCHW = norm(x_BCHW)
    return F.silu(normed_BCHW, inplace=not torch.is_grad_enabled()) if silu else normed_BCHW


def norm_trial(device: torch.device) -> bool:
    """Whether the kernels give PyTorch's values and gradients on this device."""
    from rqvae import group_norm_triton

    norm = group_norm(64).to(device)
    with torch.no_grad():
        norm.weight.copy_(trial_numbers(64, device=device))
        norm.bias.copy_(trial_numbers(64, device=device, pace=0.31))
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        start_BCHW = 3 + trial_numbers(2, 64, 19, 17, device=device, dtype=dtype)
        slope_BCHW = trial_numbers(2, 64, 19, 17, device=device, dtype=dtype, pace=0.19)
        ends = []
        for fused in (True, False):
            x_BCHW = start_BCHW.contiguous(memory_format=torch.channels_last).requires_grad_()
            if fused:
                y_BCHW = group_norm_triton.group_norm(norm, x_BCHW, silu=True)
            else:
                y_BCHW = F.silu(norm(x_BCHW.float()))
            inputs = (x_BCHW, norm.weight, norm.bias)
            ends.append([y_BCHW, *torch.autograd.grad(y_BCHW, inputs, slope_BCHW.to(y_BCHW.dtype))])
        if not all(alike(found, expected, tolerance) for found, expected in zip(*ends)):
            return False
    return True


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is 1x1 when the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        h = self.conv1(normalised(self.norm1, x_BCHW))
        h = self.conv2(self.dropout(normalised(self.norm2, h)))
        return h + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        h = normalised(self.norm, x_BCHW, silu=False)
        query, key, value = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        mixed_BTC = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return x_BCHW + self.proj_out(mixed_BTC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:]))


class Downsample(nn.Module):
    """Halve the resolution: a strided 3x3 convolution that pads on the right and at the bottom only, or a 2x2 mean."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return F.avg_pool2d(x_BCHW, 2) if self.conv is None else self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then (where wanted) a 3x3 convolution."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        return x_BCHW if self.conv is None else self.conv(x_BCHW)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where wanted. Resampling is added by the halves."""

    downsample: Downsample
    upsample: Upsample

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attention: bool, dropout: float):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResBlock(widths[i], out_channels, dropout) for i in range(num_blocks))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(num_blocks if attention else 0))

    def layers(self) -> Iterator[nn.Module]:
        """The layers in the order they run."""
        for index, block in enumerate(self.block):
            yield block
            if len(self.attn):
                yield self.attn[index]


class Middle(nn.Module):
    """The lowest resolution: residual block, attention (always), residual block."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels, dropout)

    def layers(self) -> Iterator[nn.Module]:
        """The layers in the order they run."""
        yield from (self.block_1, self.attn_1, self.block_2)
