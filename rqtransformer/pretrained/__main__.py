"""Checkpoints of both stages, ours and published: what one holds, and the same in the other format.

    python -m rqtransformer.pretrained inspect PATH [--json]
    python -m rqtransformer.pretrained convert PATH [--to snapshot|published] [--out DIR]

PATH is a published file or its folder, or a snapshot. A conversion never changes or overwrites what is there. The
published format is a torch.save file and so a pickle (of plain tensors): it is written for `--to published` only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import NoReturn

from rqstack.printable import BROKEN_PIPE_EXIT_CODE, printable

EXIT_CODE = 2
EXAMPLE = "example:\n  python -m rqtransformer.pretrained {}"


class Parser(argparse.ArgumentParser):
    """One-line errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CODE, f"error: {printable(message)}\n")


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m rqtransformer.pretrained",
        allow_abbrev=False,
        description="Checkpoints of both stages, ours and published.",
        epilog=EXAMPLE.format("convert model.pt --out snapshot"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    inspect = actions.add_parser(
        "inspect",
        allow_abbrev=False,
        help="what a checkpoint holds",
        epilog=EXAMPLE.format("inspect runs/STAGE1/TIME"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("path", help="a published file or its folder, or a snapshot")
    inspect.add_argument("--json", action="store_true", help="as one JSON object")
    change = actions.add_parser(
        "convert",
        allow_abbrev=False,
        help="the same checkpoint in the other format",
        epilog=EXAMPLE.format("convert model.pt --out snapshot"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    change.add_argument("path", help="a published file or its folder, or a snapshot")
    change.add_argument(
        "--to",
        default="snapshot",
        metavar="FORMAT",
        help="snapshot: safetensors (default); published: a torch.save file, which is a pickle",
    )
    change.add_argument("--out", help="the new folder (default: beside the old one)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from rqstack.archive import read_archive
    from rqstack.conversion import convert
    from rqstack.inspection import facts_of, lines_of

    if args.action == "convert":
        print(printable(convert(args.path, args.to, args.out)))
        return
    facts = facts_of(read_archive(args.path))
    for line in [json.dumps(facts)] if args.json else lines_of(facts):
        print(printable(line))


if __name__ == "__main__":
    try:
        main(parse())
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough; the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE_EXIT_CODE) from None
    except (ValueError, OSError) as error:
        print(printable(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
