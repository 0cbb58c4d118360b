"""What stage 1 keeps of images: `python -m sampling.reconstruct IMAGE_OR_FOLDER OUT -v STAGE1`.

Every image is cropped and resized to the model's size, written as codes and given back. OUT, a new folder, gets
`images/` with one PNG for each, `by_codes.png` with the first of them from 1, 2, ... D codes, and `result.json` with
the error by number of codes. `--codes N` gives the images back from the first N codes of every position. `--details`
also writes `differences/`, where each differs from what it was (4 times as bright), and `code_maps/`, a picture of the
codes of every depth, one pixel a code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say, warn

if TYPE_CHECKING:
    from torch import Tensor

    from rqvae import RQVAE

SHOWN = 8


def parse() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m sampling.reconstruct",
        description="Give images back from their codes.",
        example="python -m sampling.reconstruct pictures reconstructions -v runs/STAGE1/TIME",
        takes_words=False,
    )
    parser.add_argument("-v", "--vqvae", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights")
    parser.add_argument("-bs", "--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument("--codes", type=int, metavar="N", help="of every position (default: all)")
    parser.add_argument("--details", action="store_true", help="also pictures of what is lost and of the codes")
    parser.add_argument("source", metavar="IMAGE_OR_FOLDER", type=Path, help="one file, or all below a folder")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder to make")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, not {args.batch_size}")
    return args


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    import torch

    from evaluation.protocol import from_uint8
    from rqvae import load_rqvae
    from runtime.atomic import write_text_atomically
    from sampling.code_pictures import psnr, reconstructions
    from sampling.given_images import image_paths, read_image, rule_of
    from sampling.picture_grids import coarse_to_fine, save_image_file
    from sampling.trained_models import check_weights, resolve_checkpoint

    paths, checkpoint = image_paths(args.source), resolve_checkpoint(args.vqvae)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output} exists and is not an empty folder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_rqvae(checkpoint, ema=args.ema, device=device).eval()
    check_weights(model, checkpoint)
    rule, size = rule_of(checkpoint, model.config.ddconfig.in_channels), model.config.ddconfig.image_size
    depth = max(1, len(model.quantizer.num_codes))
    if args.codes is not None and not 1 <= args.codes <= depth:
        raise UserError(f"--codes {args.codes} must be 1 to {depth}: the model writes {depth} codes a position")
    squared_D, count = torch.zeros(depth, dtype=torch.float64), 0
    readable = readable_images(paths, partial(read_image, rule=rule, size=size))
    while batch := list(islice(readable, args.batch_size)):
        part = [path for path, _ in batch]
        image_BCHW = from_uint8(torch.stack([image_CHW for _, image_CHW in batch])).to(device)
        rows_D = reconstructions(model, image_BCHW)
        squared_D += torch.stack([(row - image_BCHW).double().square().mean() for row in rows_D]).cpu() * len(part)
        if not count and model.quantizer.num_codes:
            args.output.mkdir(parents=True, exist_ok=True)
            save_image_file(coarse_to_fine(model, image_BCHW[:SHOWN]), args.output / "by_codes.png")
        count += len(part)
        shown_BCHW = rows_D[(args.codes or depth) - 1]
        for number, path in enumerate(part):
            name = path.relative_to(args.source if args.source.is_dir() else path.parent)
            kept = save_picture(shown_BCHW[number], args.output / "images" / name)
            if args.details:
                save_details(
                    model,
                    image_BCHW[number],
                    shown_BCHW[number],
                    args.output,
                    kept.relative_to(args.output / "images"),
                )
    mse_D = (squared_D / count).tolist()
    psnr_D = list(map(psnr, mse_D))
    result = {"num_images": count, "mse_by_codes": mse_D, "psnr_by_codes": psnr_D, "checkpoint": str(checkpoint)}
    write_text_atomically(args.output / "result.json", json.dumps(result) + "\n")
    decibels = ", ".join("exact" if db is None else f"{db:.2f}" for db in psnr_D)
    say(f"{count} images to {args.output}; PSNR in dB from 1 to {len(mse_D)} codes: {decibels}")


def readable_images(paths: Sequence[Path], read: Callable[[Path], Tensor]) -> Iterator[tuple[Path, Tensor]]:
    """The images of a folder that can be read, and at the end a warning about all others.

    Raises:
        UserError: for a single image that cannot be read, or where none can.
    """
    unread: list[UserError] = []
    for path in paths:
        try:
            image_CHW = read(path)
        except UserError as error:
            unread.append(error)
            if len(unread) == len(paths):
                raise
        else:
            yield path, image_CHW
    if unread:
        warn(f"{len(unread)} of {len(paths)} images cannot be read, the first: {unread[0]}")


def save_picture(image_CHW: Tensor, file: Path) -> Path:
    """A float image in [-1, 1] as a PNG beside others; a second image of one stem keeps its whole name."""
    from evaluation.protocol import to_uint8
    from sampling.picture_grids import save_image_file

    target = file.with_suffix(".png")
    if target.exists():
        target = file.with_name(f"{file.name}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    save_image_file(to_uint8(image_CHW).cpu(), target)
    return target


def save_details(model: RQVAE, image_CHW: Tensor, shown_CHW: Tensor, output: Path, name: Path) -> None:
    """`differences/NAME.png` and, for every depth, `code_maps/NAME_<depth>.png`."""
    from sampling.code_pictures import code_maps, difference_picture
    from sampling.picture_grids import save_image_file

    pictures = {Path("differences") / name: difference_picture(image_CHW, shown_CHW)}
    if model.quantizer.num_codes:
        maps_D3hw = code_maps(model.get_codes(image_CHW.unsqueeze(0))[0])
        for depth, map_3hw in enumerate(maps_D3hw, start=1):
            pictures[Path("code_maps") / name.with_name(f"{name.stem}_{depth}.png")] = map_3hw
    for file, picture in pictures.items():
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        save_image_file(picture.cpu(), output / file)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
