"""The two convolutional halves: image -> feature map -> image.

Legend: B batch, C channels, H W grid.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rqstack.module_list import ModuleList
from rqvae.blocks import Downsample, Level, Middle, Upsample, group_norm, normalised
from rqvae.config import DDConfig


class _Half(nn.Module, abc.ABC):
    """Runs its layers one after the other; with `checkpointing`, training recomputes each one in the backward pass."""

    checkpointing: bool
    conv_in: nn.Conv2d
    norm_out: nn.GroupNorm
    conv_out: nn.Conv2d

    _compiled_body: Callable[[Tensor], Tensor] | None = None

    @abc.abstractmethod
    def layers(self) -> Iterator[nn.Module]:
        """The layers between the first convolution and the last normalisation."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map in, feature map out."""
        return self.conv_out((self._compiled_body or self.body)(x_BCHW))

    @abc.abstractmethod
    def body(self, x_BCHW: Tensor) -> Tensor:
        """All but the last convolution.

        `_run` in a function of the class's own: compiled code is kept by function, and with one for both halves the
        sizes of the second would be compiled as unknown numbers, which is slower and on some releases of torch fails.
        """

    def _run(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv_in(x_BCHW)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers():
            h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)
        return normalised(self.norm_out, h)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the body, as `nn.Module.compile` does a module; a copy of the module is not compiled.

        The last convolution stays outside: the adaptive loss weight takes gradients at its weight before the step's
        backward pass, and a compiled graph may be run backward once only.
        """
        self._compiled_body = torch.compile(self.body, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_compiled_body", None)
        return state


class Encoder(_Half):
    """Image (B, in_channels, H, W) -> (B, z_channels (twice for double_z), H / f, W / f), f = 2 ** (levels - 1)."""

    def __init__(self, config: DDConfig, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down: ModuleList[Level] = ModuleList()
        before = config.ch
        for index, width in enumerate(widths):
            attention = config.has_attention(index)
            level = Level(before, width, config.num_res_blocks, attention, config.dropout)
            if index < len(widths) - 1:
                level.downsample = Downsample(width, config.resamp_with_conv)
            self.down.append(level)
            before = width
        self.mid = Middle(before, config.dropout)
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, config.z_channels * (2 if config.double_z else 1), 3, padding=1)

    def body(self, x_BCHW: Tensor) -> Tensor:
        """From the image to what the last convolution takes."""
        return self._run(x_BCHW)

    def layers(self) -> Iterator[nn.Module]:
        """From the full resolution down."""
        for level in self.down:
            yield from level.layers()
            if hasattr(level, "downsample"):
                yield level.downsample
        yield from self.mid.layers()


class Decoder(_Half):
    """(B, z_channels, H / f, W / f) -> image (B, out_ch, H, W), not clamped. Levels are numbered as in the encoder."""

    def __init__(self, config: DDConfig, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.dropout)
        levels = []
        before = widths[-1]
        for index in reversed(range(len(widths))):
            attention = config.has_attention(index)
            level = Level(before, widths[index], config.num_res_blocks + 1, attention, config.dropout)
            if index > 0:
                level.upsample = Upsample(widths[index], config.resamp_with_conv)
            levels.append(level)
            before = widths[index]
        self.up: ModuleList[Level] = ModuleList(reversed(levels))
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, config.out_ch, 3, padding=1)

    def body(self, x_BCHW: Tensor) -> Tensor:
        """From the feature map to what the last convolution takes."""
        return self._run(x_BCHW)

    def layers(self) -> Iterator[nn.Module]:
        """From the lowest resolution up."""
        yield from self.mid.layers()
        for level in reversed(list(self.up)):
            yield from level.layers()
            if hasattr(level, "upsample"):
                yield level.upsample
