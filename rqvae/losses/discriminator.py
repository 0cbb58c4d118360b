"""The patch discriminator of stage 1 (Isola et al. 2017, "PatchGAN").

Legend: B batch, C channels, H W image size, h w size of the map of patch decisions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm

from rqvae.losses.config import DiscriminatorConfig
from rqvae.losses.normalization import ActNorm, SyncBatchNorm

NORM_LAYERS = {"batch": nn.BatchNorm2d, "act": ActNorm, "sync": SyncBatchNorm}
MAX_WIDTH_FACTOR = 8


class PatchDiscriminator(nn.Module):
    """4x4 convolutions that judge overlapping patches; parameters are named `main.N.*` as published.

    `num_layers` convolutions of stride 2 are followed by two of stride 1, the last of which has one output channel; all
    but the first and the last are normalised. `num_layers=2` sees patches of 34 x 34 pixels. The width starts at
    `ndf` and doubles per layer up to 8 * ndf.

    Args:
        norm: 'batch', 'act' (ActNorm) or 'sync' (batch statistics over all ranks).
        spectral_norm: bound the spectral norm of every convolution (renames its weight in the state dict).

    Raises ValueError for an unknown `norm` or sizes below 1.
    """

    def __init__(
        self, in_channels: int = 3, num_layers: int = 2, ndf: int = 64, norm: str = "batch", spectral_norm: bool = False
    ):
        super().__init__()
        if norm not in NORM_LAYERS:
            raise ValueError(f"unknown discriminator norm {norm!r}, choose one of {sorted(NORM_LAYERS)}")
        if min(in_channels, num_layers, ndf) < 1:
            raise ValueError(
                f"discriminator sizes must be at least 1: in_channels {in_channels}, num_layers {num_layers}, ndf {ndf}"
            )
        widths = [ndf * min(2**i, MAX_WIDTH_FACTOR) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [_conv(in_channels, ndf, stride=2), nn.LeakyReLU(0.2, inplace=True)]
        for i, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
            stride = 2 if i < num_layers else 1
            # A batch norm removes the mean again, so a bias before it would do nothing.
            layers += [_conv(width_in, width_out, stride, bias=norm == "act"), NORM_LAYERS[norm](width_out)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [_conv(widths[-1], 1, stride=1)]
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)
        if spectral_norm:
            for layer in self.main:
                if isinstance(layer, nn.Conv2d):
                    add_spectral_norm(layer)

    @classmethod
    def from_config(cls, config: DiscriminatorConfig, channels: int = 3) -> PatchDiscriminator:
        """The discriminator of a `gan.disc.arch` section; `channels` of the images, where it does not say them."""
        in_channels = channels if config.in_channels is None else config.in_channels
        return cls(in_channels, config.num_layers, config.ndf, config.norm, config.spectral_norm)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> logits (B, 1, h, w), large for patches taken for real."""
        return self.main(image_BCHW)


def _conv(channels_in: int, channels_out: int, stride: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=4, stride=stride, padding=1, bias=bias)


def _initialize(module: nn.Module) -> None:
    """N(0, 0.02) for convolutions and N(1, 0.02) for batch norms (Isola et al. 2017, sec. 6.2)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
