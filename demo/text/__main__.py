"""`python -m demo.text`: trains both stages on captioned pictures of two shapes, samples held-out captions, judges.

The steps are the commands a user would type; each is printed before it runs.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from demo.commands import run, run_of
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.errors import exit_on_user_error

CONFIG = "pairs"
STAGE1_CONFIG = f"configs/demo-text/stage1/{CONFIG}.yaml"
STAGE2_CONFIG = f"configs/demo-text/stage2/{CONFIG}.yaml"
NUM_CAPTIONS, NUM_IMAGES = 500, 30_000  # that are scored; that the judge is trained on


def main(out: Path, overrides1: Sequence[str], overrides2: Sequence[str], num_captions: int, judge_images: int) -> None:
    """The demo, from training to report."""
    seconds: dict[str, float] = {}
    seconds["seconds_stage1"] = run(["main_stage1.py", "-m", STAGE1_CONFIG, "-r", str(out / "stage1"), *overrides1])
    stage1 = run_of(out / "stage1", CONFIG)
    seconds["seconds_stage2"] = run(
        ["main_stage2.py", "-m", STAGE2_CONFIG, "-v", str(stage1), "-r", str(out / "stage2"), *overrides2]
    )
    stage2 = run_of(out / "stage2", CONFIG)
    report(out, stage1, stage2, num_captions, judge_images, seconds)


def report(
    out: Path, stage1: Path, stage2: Path, num_captions: int, judge_images: int, seconds: dict[str, float]
) -> None:
    """Everything after training."""
    # after the flags are read: `--help` does not wait for torch
    from demo.text.measure import HEADLINE_SCALE, PROMPT_IMAGES, PROMPTS, TextModel, measure
    from demo.text.pictures import draw_prompts, draw_sweep
    from demo.text.report import print_table, write_report

    print("\ntraining the judge, sampling at every guidance scale", flush=True)
    started = time.perf_counter()
    summary = measure(stage1, stage2, num_captions, judge_images)
    prompts = [prompt for prompt in PROMPTS for _ in range(PROMPT_IMAGES)]
    draw_prompts(out / "samples.png", PROMPTS, TextModel(stage1, stage2).draw(prompts, HEADLINE_SCALE, seed=1))
    draw_sweep(out / "sweep.png", summary["sweep"], summary["num_captions"])
    seconds["seconds_measure"] = time.perf_counter() - started
    used = os.times()
    seconds["cpu_seconds"] = used.user + used.system + used.children_user + used.children_system
    summary |= {name: round(value, 1) for name, value in seconds.items()}
    write_text_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(out / "report.html", summary, stage1, stage2, out / "samples.png", out / "sweep.png")
    print_table(summary)
    print(*("", *(out / name for name in ("report.html", "samples.png", "sweep.png", "summary.json"))), sep="\n")


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m demo.text",
        description="Train text to image on synthetic captions, sample, judge, report.",
        example="python -m demo.text --out runs/demo-text --stage2 experiment.max_steps=500",
        takes_words=False,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo-text"), help="default: runs/demo-text")
    parser.add_argument("--num-captions", type=int, default=NUM_CAPTIONS, help=f"default: {NUM_CAPTIONS}")
    parser.add_argument("--judge-images", type=int, default=NUM_IMAGES, help=f"default: {NUM_IMAGES}")
    parser.add_argument("--stage1", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-1 config")
    parser.add_argument("--stage2", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-2 config")
    arguments = parser.parse_args()
    with exit_on_user_error():
        main(arguments.out, arguments.stage1, arguments.stage2, arguments.num_captions, arguments.judge_images)
