"""The tab that completes an image: painted cells are drawn again, the others keep their codes.

Legend: B fills, C channels, H W image, h w grid of codes, D code depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from demo.web.models import Models
from demo.web.settings import DrawFields
from evaluation.protocol import to_uint8
from runtime.errors import UserError
from sampling.inpaint import coloured, condition_of, draw_fills, greyed

NUM_FILLS = 4


@dataclass(frozen=True)
class Filled:
    """An image with its fills.

    Attributes:
        kept_CHW: uint8, what is drawn again in grey.
        fill_BCHW: uint8, as the command saves them.
        codes_hwD, filled_BhwD: codes of the image and of the fills.
        redrawn_hw: which cells were painted.
        command: what draws the same into files.
    """

    kept_CHW: Tensor
    fill_BCHW: Tensor
    codes_hwD: Tensor
    filled_BhwD: Tensor
    redrawn_hw: Tensor
    command: list[str]


def cells_from(numbers: Iterable[object], grid: tuple[int, int]) -> Tensor:
    """Painted cells (h, w) by their numbers in raster order, as the page gives them.

    Raises:
        UserError: none is painted, or one that is not there.
    """
    redrawn_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < len(redrawn_N):
            raise UserError(f"cell {number!r} is none of the {len(redrawn_N)} of this model")
        redrawn_N[number] = True
    if not redrawn_N.any():
        raise UserError("paint what is to be drawn again: no cell is painted")
    return redrawn_N.view(grid)


def mask_picture(redrawn_hw: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask as the command takes it, uint8 (1, H, W) of an image of this size: painted cells are white."""
    rows, columns = (torch.arange(pixels) * cells // pixels for pixels, cells in zip(size, redrawn_hw.shape))
    return (redrawn_hw[rows][:, columns].to(torch.uint8) * 255).unsqueeze(0)


def fill(
    models: Models,
    kept: Path,
    numbers: Iterable[object],
    fields: DrawFields,
    class_number: int | None = None,
    prompt: str = "",
) -> Filled:
    """Draws the painted cells of a kept image again, `NUM_FILLS` times.

    Args:
        kept: of `Models.given` or `Models.example`.
        numbers: of the painted cells.
        class_number, prompt: what the fills shall show, where the model asks for it.

    Raises:
        ValueError: what cannot be drawn.
    """
    redrawn_hw = cells_from(numbers, models.grid)
    settings = fields.settings(models.depth)
    asked_class = None if class_number is None else models.class_word(class_number)
    condition = condition_of(asked_class, prompt.strip() or None, models.stage2, models.checkpoint)
    image_1CHW = models.pixels(kept)
    codes_hwD, filled_BhwD, fill_BCHW = draw_fills(
        models.stage1,
        models.stage2,
        image_1CHW,
        redrawn_hw,
        condition,
        NUM_FILLS,
        settings.seed,
        settings.arguments(models.stage2),
    )
    asked = ["--class", asked_class] if asked_class is not None else []
    asked += ["--prompt", prompt.strip()] if prompt.strip() else []
    height, width = image_1CHW.shape[-2:]
    mask = models.keep(mask_picture(redrawn_hw, (height, width)), "mask")
    how = ["-n", str(NUM_FILLS), *asked, *fields.words(), "--save-dir", str(models.folder)]
    return Filled(
        to_uint8(greyed(image_1CHW, redrawn_hw)[0]).cpu(),
        torch.stack([coloured(fill_CHW) for fill_CHW in to_uint8(fill_BCHW).cpu()]),
        codes_hwD.cpu(),
        filled_BhwD.cpu(),
        redrawn_hw,
        ["-m", "sampling.inpaint", str(kept), str(mask), *models.words(), *how],
    )
