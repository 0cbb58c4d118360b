"""`python -m demo.web [--stage1 S --stage2 T]`: two trained models in a browser on this machine.

Without arguments it takes the demo that was trained last (`python -m demo`, `python -m demo.text`), and trains the
first of these where there is none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.commands import run
from demo.web.serving import check_gradio
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say

RUNS = Path("runs")


def parse() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m demo.web",
        description="Two trained models in a browser on this machine.",
        example="python -m demo.web --stage1 runs/STAGE1/TIME --stage2 runs/STAGE2/TIME",
        takes_words=False,
    )
    parser.add_argument("--stage1", metavar="S", help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("--stage2", metavar="T", help="stage-2 run, snapshot or published checkpoint")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of stage 2")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--save-dir", type=Path, default=RUNS / "web", help="images that the shown commands read (default: runs/web)"
    )
    args = parser.parse_args()
    if (args.stage1 is None) != (args.stage2 is None):
        parser.error("give both --stage1 and --stage2, or neither: then the newest demo is taken")
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port} must be 1 to 65535")
    return args


def models_to_show(stage1: str | None, stage2: str | None) -> tuple[str, str]:
    """Those that are named, else those of the newest demo, which is trained where there is none."""
    if stage1 is not None and stage2 is not None:
        return stage1, stage2
    # after the flags are read: `--help` does not wait for torch
    from demo.web.models import newest_demo

    found = newest_demo(RUNS)
    if found is None:
        say(f"no trained demo below {RUNS}/: training one first, minutes on a CPU (python -m demo)")
        run(["-m", "demo", "--out", str(RUNS / "demo")])
        found = newest_demo(RUNS)
    if found is None:
        raise UserError(f"python -m demo left no models below {RUNS}/: give --stage1 and --stage2")
    say(f"showing the newest demo: {found[0]} and {found[1]}")
    return str(found[0]), str(found[1])


def main(args: argparse.Namespace) -> None:
    check_gradio()
    stage1, stage2 = models_to_show(args.stage1, args.stage2)
    from demo.web.models import open_models
    from demo.web.serving import serve

    serve(open_models(stage1, stage2, args.save_dir, args.ema), args.port)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
