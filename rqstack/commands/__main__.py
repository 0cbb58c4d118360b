"""The libraries from a terminal: `rqstack inspect|sample|inpaint|reconstruct`, or `python -m rqstack.commands`.

A checkpoint goes in, PNG files come out. Of the packages that are not the wheel's own, reading and writing pictures
needs Pillow (the extra `images`). Whatever is wrong is one line and exit code 2, and nothing is left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rqstack import __version__
from rqstack.commands.settings import DrawFlags, InpaintSettings, ReconstructSettings, SampleSettings
from rqstack.printable import BROKEN_PIPE_EXIT_CODE, printable

EXIT_CODE = 2
CHECKPOINT = "a snapshot, a run directory, or a published file beside its config.yaml"


class Parser(argparse.ArgumentParser):
    """One-line errors; the example comes last."""

    def __init__(self, *, example: str = "", **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]  # they are those of argparse, which a subparser hands on by name
        )

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CODE, f"error: {printable(message)}\n")


def parser() -> Parser:
    """The flags of all commands."""
    top = Parser(
        prog="rqstack",
        description="RQ-VAE and RQ-Transformer checkpoints, ours and published.",
        example="rqstack sample -v STAGE1 -a STAGE2 -n 16 --out samples",
    )
    top.add_argument("--version", action="version", version=f"rqstack {__version__}")
    actions = top.add_subparsers(dest="action", required=True, metavar="COMMAND")
    inspect = actions.add_parser("inspect", help="what a checkpoint holds", example="rqstack inspect STAGE1")
    inspect.add_argument("path", metavar="CHECKPOINT", type=Path, help=CHECKPOINT)
    inspect.add_argument("--json", action="store_true", help="as one JSON object")

    sample = actions.add_parser(
        "sample",
        help="images from nothing, or of a class",
        example="rqstack sample -v STAGE1 -a STAGE2 --class 3 -n 16 --out samples",
    )
    _add_models(sample, stage2=True)
    sample.add_argument("-n", "--num", type=int, default=16, help="images to draw (default: 16)")
    _add_drawing(sample, "which class (default: all of them in turn)")

    inpaint = actions.add_parser(
        "inpaint",
        help="a part of an image drawn again, or all of it below its first rows",
        example="rqstack inpaint cat.png mask.png -v STAGE1 -a STAGE2 --class cat --out fills",
    )
    inpaint.add_argument("image", metavar="IMAGE", type=Path, help="of any size; it is cropped and resized")
    inpaint.add_argument(
        "mask", metavar="MASK", type=Path, nargs="?", help="of the same size, white where something new is wanted"
    )
    _add_models(inpaint, stage2=True)
    inpaint.add_argument("--keep-rows", type=int, metavar="K", help="keep the first K rows of codes, draw all others")
    inpaint.add_argument("-n", "--num", type=int, default=4, help="fills to draw (default: 4)")
    _add_drawing(inpaint, "which class the fills shall show, for a model with classes")

    reconstruct = actions.add_parser(
        "reconstruct",
        help="what stage 1 keeps of images",
        example="rqstack reconstruct pictures -v STAGE1 --out reconstructions",
    )
    reconstruct.add_argument("source", metavar="IMAGE_OR_FOLDER", type=Path, help="one file, or all below a folder")
    _add_models(reconstruct, stage2=False)
    return top


def _add_models(command: argparse.ArgumentParser, stage2: bool) -> None:
    group = command.add_argument_group("models and place")
    group.add_argument("-v", "--stage1", metavar="STAGE1", type=Path, required=True, help=f"RQ-VAE: {CHECKPOINT}")
    if stage2:
        group.add_argument(
            "-a", "--stage2", metavar="STAGE2", type=Path, required=True, help="RQ-Transformer: likewise"
        )
    which = "stage 2" if stage2 else "stage 1"
    group.add_argument("--ema", action="store_true", help=f"use the averaged weights of {which}")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU where there is one)")
    group.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder to make")


def _add_drawing(command: argparse.ArgumentParser, classes: str) -> None:
    group = command.add_argument_group("drawing")
    group.add_argument("--class", dest="class_name", metavar="CLASS", help=f"name or number: {classes}")
    group.add_argument("-t", "--temp", type=float, nargs="+", metavar="T", help="temperature, one or one per depth")
    group.add_argument(
        "--top-k", type=int, nargs="+", metavar="K", help="one or one per depth (default: as the checkpoint says)"
    )
    group.add_argument(
        "--top-p", type=float, nargs="+", metavar="P", help="one or one per depth (default: as the checkpoint says)"
    )
    group.add_argument("--cfg-scale", type=float, metavar="SCALE", help="classifier-free guidance")
    group.add_argument("--seed", type=int, default=0, help="of all noise (default: 0)")


def _draw_flags(args: argparse.Namespace) -> DrawFlags:
    rules = {"temperature": args.temp, "top_k": args.top_k, "top_p": args.top_p, "cfg_scale": args.cfg_scale}
    return DrawFlags(
        args.class_name, args.num, args.seed, {name: rule for name, rule in rules.items() if rule is not None}
    )


def run(args: argparse.Namespace) -> list[str]:
    """What a command says at its end, after it has done its work."""
    # after the flags are read: `--help` does not wait for torch
    from rqstack.commands import drawing, reconstructing

    if args.action == "inspect":
        from rqstack.archive import read_archive
        from rqstack.inspection import facts_of, lines_of

        facts = facts_of(read_archive(args.path))
        return [json.dumps(facts)] if args.json else lines_of(facts)
    if args.action == "reconstruct":
        return [
            reconstructing.reconstruct(ReconstructSettings(args.source, args.stage1, args.out, args.ema, args.device))
        ]
    models = (args.stage1, args.stage2, args.out, args.ema, args.device)
    if args.action == "sample":
        return [drawing.sample(SampleSettings(*models, _draw_flags(args)))]
    return [drawing.inpaint(InpaintSettings(*models, _draw_flags(args), args.image, args.mask, args.keep_rows))]


def main(words: Sequence[str] | None = None) -> None:
    """The console script."""
    args = parser().parse_args(words)
    try:
        for line in run(args):
            print(printable(line))
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough; the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE_EXIT_CODE) from None
    except KeyboardInterrupt:
        print(printable("interrupted"), file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (ValueError, OSError) as error:
        print(printable(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None


if __name__ == "__main__":
    main()
