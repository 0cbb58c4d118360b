"""Fills a part of an image anew: `python -m sampling.inpaint IMAGE MASK -v STAGE1 -a STAGE2 [-n 4]`.

MASK is white where something new is wanted and has the size of IMAGE; it snaps to the cells of the codes, and every
cell with a white pixel is drawn again, in raster order, given all that stands before it. In place of a mask
`--keep-rows K` completes an image from its first K rows of codes. Codes that are not drawn again stay exactly. The
run's folder gets `fill-<number>.png`, `fills.png` (the image, what is kept of it, the fills), `codes.npz` and
`result.json`.

Legend: B fills, C channels, H W image, h w grid of codes, D code depth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, first_few, say
from sampling.flags import guidance

if TYPE_CHECKING:
    from torch import Tensor

    from rqtransformer import RQTransformer
    from rqvae import RQVAE


def parse() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m sampling.inpaint",
        description="Draw a part of an image again, or all of it below its first rows.",
        example="python -m sampling.inpaint cat.png mask.png -v runs/STAGE1/TIME -a runs/STAGE2/TIME --class cat -n 4\n"
        "python -m sampling.inpaint cat.png --keep-rows 4 -v runs/STAGE1/TIME -a runs/STAGE2/TIME --class cat",
        takes_words=False,
    )
    models = parser.add_argument_group("models")
    draw = parser.add_argument_group("drawing")
    models.add_argument("-v", "--model-vqvae-path", required=True, help="stage-1 run, snapshot or published checkpoint")
    models.add_argument("-a", "--model-ar-path", required=True, help="stage-2 run, snapshot or published checkpoint")
    models.add_argument("--ema", action="store_true", help="use the averaged weights of stage 2")
    parser.add_argument("-n", "--num", type=int, default=4, help="fills to draw (default: 4)")
    parser.add_argument("--keep-rows", type=int, metavar="K", help="keep the first K rows of codes, draw all others")
    parser.add_argument("--class", dest="class_name", metavar="CLASS", help="name or number, for a model with classes")
    parser.add_argument("--prompt", help="text, for a model of captions")
    draw.add_argument("-t", "--temp", type=float, nargs="+", help="temperature, one or one per depth")
    draw.add_argument("--top-k", type=int, nargs="+", help="one or one per depth; default: as the checkpoint says")
    draw.add_argument("--top-p", type=float, nargs="+", help="one or one per depth; default: as the checkpoint says")
    draw.add_argument("--cfg-scale", type=guidance, metavar="SCALE", help="classifier-free guidance")
    draw.add_argument("--seed", type=int, default=0, help="of all noise (default: 0)")
    parser.add_argument("--save-dir", type=Path, help="where the run goes (default: beside the stage-2 checkpoint)")
    parser.add_argument(
        "image", metavar="IMAGE", type=Path, help="of any size; it is cropped and resized as stage 1 wants it"
    )
    parser.add_argument("mask", metavar="MASK", type=Path, nargs="?", help="white where something new is wanted")
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f"--num must be at least 1, not {args.num}")
    if (args.mask is None) == (args.keep_rows is None):
        parser.error("give either a MASK or --keep-rows")
    return args


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    import torch

    from evaluation.protocol import from_uint8, to_uint8
    from runtime.atomic import write_text_atomically
    from runtime.npz import write_npz
    from runtime.rundir import new_run_dir
    from sampling.given_images import image_size, painted_cells, read_image, rule_of
    from sampling.picture_grids import image_grid, save_image_file
    from sampling.sampler import SamplingSettings
    from sampling.trained_models import directory_beside, load_models, resolve_checkpoint, stage1_is_averaged

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage1_path, checkpoint = resolve_checkpoint(args.model_vqvae_path), resolve_checkpoint(args.model_ar_path)
    stage1, stage2 = load_models(
        stage1_path, checkpoint, device, stage1_ema=stage1_is_averaged(checkpoint), stage2_ema=args.ema
    )
    settings = SamplingSettings(args.temp, args.top_k, args.top_p, args.cfg_scale, seed=args.seed).arguments(stage2)
    condition = condition_of(args.class_name, args.prompt, stage2, checkpoint)
    height, width, _ = stage2.config.block_size
    dd = stage1.config.ddconfig
    if args.mask is not None:
        redrawn_hw = painted_cells(args.mask, image_size(args.image), dd.image_size, (height, width))
    elif 0 <= args.keep_rows < height:
        redrawn_hw = (torch.arange(height) >= args.keep_rows).unsqueeze(1).expand(height, width)
    else:
        raise UserError(f"--keep-rows {args.keep_rows} must be 0 to {height - 1}: the codes have {height} rows")
    if not redrawn_hw.any():
        raise UserError(f"{args.mask} is white nowhere: nothing is to be drawn")
    pixels_CHW = read_image(args.image, rule_of(stage1_path, dd.in_channels), dd.image_size)
    image_BCHW = from_uint8(pixels_CHW.unsqueeze(0)).to(device)
    codes_hwD, filled_BhwD, fill_BCHW = draw_fills(
        stage1, stage2, image_BCHW, redrawn_hw, condition, args.num, args.seed, settings
    )
    directory = new_run_dir(args.save_dir or directory_beside(checkpoint), "inpainted", f"seed{args.seed}")
    for number, fill_CHW in enumerate(to_uint8(fill_BCHW).cpu()):
        save_image_file(coloured(fill_CHW), directory / f"fill-{number}.png")
    shown = torch.cat([image_BCHW, greyed(image_BCHW, redrawn_hw), fill_BCHW])
    labels = ["image", "kept", *(f"fill {number}" for number in range(args.num))]
    save_image_file(image_grid(shown, len(labels), image_labels=labels), directory / "fills.png")
    arrays = {"image": codes_hwD, "redrawn": redrawn_hw, "fills": filled_BhwD}
    write_npz(directory / "codes.npz", {name: codes.cpu().numpy() for name, codes in arrays.items()})
    cells = int(redrawn_hw.sum())
    facts = {"image": str(args.image), "cells_redrawn": cells, "cells": height * width, "seed": args.seed, **settings}
    write_text_atomically(directory / "result.json", json.dumps(facts) + "\n")
    say(f"{args.num} fills of {cells} of {height * width} cells to {directory}")


def draw_fills(
    stage1: RQVAE,
    stage2: RQTransformer,
    image_1CHW: Tensor,
    redrawn_hw: Tensor,
    condition: Tensor | None,
    num: int,
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (h, w, D) of an image in [-1, 1], those of its fills (B, h, w, D), and the fills as images.

    Args:
        redrawn_hw: which cells are drawn again; all others keep their codes.
        condition: of `condition_of`.
        settings: of `SamplingSettings.arguments`.
    """
    from rqtransformer import sample

    codes_BhwD = stage1.eval().get_codes(image_1CHW).expand(num, -1, -1, -1)
    known = (~redrawn_hw.to(image_1CHW.device), codes_BhwD)
    cond = None if condition is None else condition.to(image_1CHW.device).expand(num, *condition.shape[1:])
    filled_BhwD = sample(stage2, stage1, cond, known=known, seed=seed, **settings)
    return codes_BhwD[0], filled_BhwD, stage1.decode_code(filled_BhwD)


def coloured(image_CHW: Tensor) -> Tensor:
    """A picture to be saved: a grey image repeated to three channels."""
    return image_CHW.expand(max(3, len(image_CHW)), -1, -1)


def condition_of(class_name: str | None, prompt: str | None, stage2: RQTransformer, checkpoint: Path) -> Tensor | None:
    """Ids (1,) or (1, L) of what the fills shall show; None for a model without condition or with a null one.

    Args:
        class_name, prompt: what the user asks for.
        checkpoint: that of stage 2, which knows the classes' names and the tokenizer.

    Raises:
        UserError: what the model needs is missing, what it does not take is given.
    """
    import torch

    from data.config import DatasetConfig
    from rqstack.archive import read_archive
    from sampling.conditions import class_number
    from sampling.prompts import Prompts, find_tokenizer, tokenize
    from sampling.trained_models import class_names_of

    config = stage2.config
    if config.block_size_cond > 1:
        if class_name is not None:
            raise UserError("--class is for a model with classes: this one takes --prompt")
        if prompt is None and not config.has_null_condition:
            raise UserError("this model was trained on captions: give --prompt")
        if prompt is None:
            return None
        section = (read_archive(checkpoint, wanted=()).config or {}).get("dataset") or {}
        known = {name: value for name, value in section.items() if name in DatasetConfig.__dataclass_fields__}
        tokenizer = find_tokenizer(None, checkpoint, DatasetConfig(**known), config)
        return tokenize(Prompts([prompt], "--prompt"), tokenizer).token_ML
    if prompt is not None:
        raise UserError("--prompt is for a model of captions")
    if config.vocab_size_cond < 2:
        if class_name is not None:
            raise UserError("--class is for a model with classes: this one has none")
        return None
    names = class_names_of(checkpoint)
    if class_name is None and not config.has_null_condition:
        last = config.vocab_size_cond - 1
        shown = first_few(names, 10) if names else f"0..{last}"
        raise UserError(f"this model has classes: give --class ({shown})")
    if class_name is None:
        return None
    return torch.tensor([class_number(class_name, names, config.vocab_size_cond)])


def greyed(image_BCHW: Tensor, redrawn_hw: Tensor) -> Tensor:
    """The image with the cells that are drawn again in grey."""
    import torch.nn.functional as F

    size = image_BCHW.shape[-2:]
    redrawn_HW = F.interpolate(redrawn_hw[None, None].float(), size=size, mode="nearest")[0, 0] > 0
    return image_BCHW.masked_fill(redrawn_HW.to(image_BCHW.device), 0.0)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
