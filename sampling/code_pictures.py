"""What codes keep of an image, as pictures and numbers: the image by number of codes, what is lost, the codes.

Legend: B batch, C channels, H W image, h w grid of codes, D code depth, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.colors import hsv_to_rgb
from torch import Tensor

from evaluation.protocol import from_uint8, to_uint8
from rqvae import RQVAE

DIFFERENCE_GAIN = 4
_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, without their whole parts, lie far from each other


@torch.no_grad()
def reconstructions(model: RQVAE, image_BCHW: Tensor) -> list[Tensor]:
    """Images in [-1, 1] from the first 1, 2, ... D codes; a model without bottleneck has one, from no codes."""
    if not model.quantizer.num_codes:
        rows = [model(image_BCHW).recon]
    else:
        codes_BhwD = model.get_codes(image_BCHW)
        rows = [model.decode_partial_code(codes_BhwD, depth, "add") for depth in range(codes_BhwD.shape[-1])]
    return [from_uint8(to_uint8(row)) for row in rows]


def psnr(mse: float) -> float | None:
    """Decibels of a mean squared error of pixels in [-1, 1]; None without an error."""
    return None if mse == 0 else 10 * math.log10(4 / mse)  # pixels span 2


def bits_per_pixel(code_shape: Sequence[int], num_codes: Sequence[int], pixels: int, depth: int) -> float:
    """What the first `depth` codes of every position take, each written in log2(K) bits.

    Args:
        code_shape: (h, w, D).
        num_codes: K of every depth.
        pixels: of an image.
    """
    return code_shape[0] * code_shape[1] * sum(math.log2(size) for size in num_codes[:depth]) / pixels


def difference_picture(image_CHW: Tensor, other_CHW: Tensor) -> Tensor:
    """Where two images in [-1, 1] differ: uint8 (C, H, W), black where they agree, `DIFFERENCE_GAIN` times brighter."""
    apart_CHW = (to_uint8(image_CHW).int() - to_uint8(other_CHW).int()).abs()
    return (apart_CHW * DIFFERENCE_GAIN).clamp_(max=255).to(torch.uint8)


def code_maps(codes_hwD: Tensor) -> Tensor:
    """A picture of every depth, uint8 (D, 3, h, w): one pixel a code, the same colour for the same code."""
    codes_Dhw = codes_hwD.permute(2, 0, 1).double().cpu()
    hue = torch.frac(codes_Dhw * _GOLDEN)
    saturation = 0.45 + 0.4 * torch.frac(codes_Dhw * _GOLDEN**2)
    value = 0.6 + 0.35 * torch.frac(codes_Dhw * _GOLDEN**3)
    rgb_Dhw3 = torch.from_numpy(hsv_to_rgb(torch.stack([hue, saturation, value], dim=-1).numpy()))
    return (rgb_Dhw3 * 255).round().to(torch.uint8).permute(0, 3, 1, 2)
