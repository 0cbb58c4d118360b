"""The tabs that show what codes keep of an image: from coarse to fine, and beside what it was.

Legend: C channels, H W image, h w grid of codes, D code depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from demo.web.models import Models
from evaluation.protocol import to_uint8
from runtime.errors import UserError
from sampling.code_pictures import bits_per_pixel, code_maps, difference_picture, psnr, reconstructions


@dataclass(frozen=True)
class Decoded:
    """An image given back from its codes.

    Attributes:
        image_CHW: uint8, what it was.
        recon_DCHW: uint8, from the first 1, 2, ... D codes.
        mse_D, psnr_D, bits_D: error in [-1, 1], the same in decibels (None: exact), bits per pixel.
        difference_CHW: uint8, what all codes lose, brighter.
        map_D3hw: uint8, one pixel a code.
        codes_hwD: the codes.
    """

    image_CHW: Tensor
    recon_DCHW: list[Tensor]
    mse_D: list[float]
    psnr_D: list[float | None]
    bits_D: list[float]
    difference_CHW: Tensor
    map_D3hw: Tensor
    codes_hwD: Tensor

    def line(self, depth: int) -> str:
        """Error and bits per pixel of the first `depth` codes, in words."""
        decibels = self.psnr_D[depth - 1]
        quality = "exact" if decibels is None else f"{decibels:.2f} dB"
        codes = "code" if depth == 1 else "codes"
        return (
            f"{depth} of {len(self.recon_DCHW)} {codes} a position: mean squared error {self.mse_D[depth - 1]:.5f}, "
            f"PSNR {quality}, {self.bits_D[depth - 1]:.3f} bits per pixel"
        )


def decode(models: Models, kept: Path) -> Decoded:
    """Encodes a kept image and gives it back from every number of codes."""
    image_1CHW = models.pixels(kept)
    rows = reconstructions(models.stage1, image_1CHW)
    mse_D = [(row - image_1CHW).double().square().mean().item() for row in rows]
    codes_hwD = models.stage1.get_codes(image_1CHW)[0].cpu()
    pixels, sizes = image_1CHW.shape[-2] * image_1CHW.shape[-1], list(models.stage1.quantizer.num_codes)
    return Decoded(
        to_uint8(image_1CHW[0]).cpu(),
        [to_uint8(row[0]).cpu() for row in rows],
        mse_D,
        [psnr(mse) for mse in mse_D],
        [bits_per_pixel(codes_hwD.shape, sizes, pixels, depth) for depth in range(1, len(rows) + 1)],
        difference_picture(image_1CHW[0], rows[-1][0]).cpu(),
        code_maps(codes_hwD),
        codes_hwD,
    )


def reconstruct_command(models: Models, kept: Path, depth: int | None = None, details: bool = False) -> list[str]:
    """What gives the image back into a folder.

    Args:
        depth: number of codes; None: all.
        details: with the pictures of what is lost and of the codes.

    Raises:
        UserError: a number of codes that the model does not have.
    """
    if depth is not None and not 1 <= depth <= models.depth:
        raise UserError(f"{depth} codes must be 1 to {models.depth}")
    digest = kept.stem.removeprefix("image-")
    out = models.folder / f"reconstruction-{digest}{f'-{depth}-codes' if depth else ''}"
    words = ["-m", "sampling.reconstruct", str(kept), str(out), "-v", models.stage1_path]
    words += ["--ema"] if models.stage1_ema else []
    words += ["--codes", str(depth)] if depth else []
    return [*words, "--details"] if details else words
