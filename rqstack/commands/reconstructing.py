"""`rqstack reconstruct`: images written as codes and given back.

Legend: B images, C channels, H W image, D code depth.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from rqstack.archive import read_archive
from rqstack.commands.models import chosen_device, load_stage1
from rqstack.commands.output import check_free, new_folder, png_beside
from rqstack.commands.pictures import (
    ENDINGS,
    as_tensor,
    from_bytes,
    import_pillow,
    open_picture,
    save_picture,
    save_sheet,
    to_bytes,
)
from rqstack.commands.settings import ReconstructSettings
from rqvae import RQVAE

BATCH = 16


def reconstruct(settings: ReconstructSettings) -> str:
    """Gives every image back: from all codes under `images/`; beside the original from 1, 2, ... D codes under
    `by_codes/`, from left to right. Says the PSNR by number of codes.
    """
    import_pillow()
    check_free(settings.out)
    paths = image_paths(settings.source)
    model = load_stage1(settings.stage1, chosen_device(settings.device), settings.ema)
    sizes, background = model.config.ddconfig, background_of(settings.stage1)
    squared_D = torch.zeros((), dtype=torch.float64)
    with new_folder(settings.out) as folder:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            pictures = [open_picture(path, sizes.in_channels, background) for path in part]
            image_BCHW = torch.stack([as_tensor(picture, sizes.image_size) for picture in pictures])
            by_codes = [from_bytes(to_bytes(row)) for row in from_few_codes(model, image_BCHW)]
            errors = [(row - image_BCHW).double().square().mean((1, 2, 3)).sum() for row in by_codes]
            squared_D = squared_D + torch.stack(errors)
            for index, path in enumerate(part):
                name = path.relative_to(settings.source) if settings.source.is_dir() else Path(path.name)
                rows = [row[index] for row in by_codes]
                save_picture(rows[-1], png_beside(folder / "images" / name))
                save_sheet([image_BCHW[index], *rows], png_beside(folder / "by_codes" / name), 1 + len(rows))
    ratios = ["exact" if mse == 0 else f"{10 * math.log10(4 / mse):.2f}" for mse in (squared_D / len(paths)).tolist()]
    return f"{len(paths)} images to {settings.out}; PSNR in dB from 1 to {len(ratios)} codes: {', '.join(ratios)}"


@torch.no_grad()
def from_few_codes(model: RQVAE, image_BCHW: Tensor) -> list[Tensor]:
    """Reconstructions from the first 1, 2, ..., D codes, in [-1, 1]; a model without codes gives the one it has."""
    image_BCHW = image_BCHW.to(next(model.parameters()).device)
    if not model.quantizer.num_codes:
        return [model(image_BCHW).recon]
    codes_BHWD = model.get_codes(image_BCHW)
    depths = range(codes_BHWD.shape[-1])
    return [model.decode_partial_code(codes_BHWD, depth, "add") for depth in depths]


def image_paths(source: Path) -> list[Path]:
    """The file itself, or the images below a folder in order; ValueError where there are none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source} is no file and no folder")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise ValueError(f"{source} holds no images ({', '.join(ENDINGS)})")
    return found


def background_of(stage1: Path) -> str:
    """The colour behind what is transparent, as stage 1 was trained; white where its config does not say it."""
    dataset = (read_archive(stage1, wanted=()).config or {}).get("dataset") or {}
    return str(dataset.get("background") or "white")
