"""`python -m demo`: trains both stages on digits, samples, scores, and writes the report.

The steps are the commands a user would type; each is printed before it runs.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from demo.commands import run, run_of
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.errors import exit_on_user_error

CONFIG = "digits"
STAGE1_CONFIG = f"configs/demo/stage1/{CONFIG}.yaml"
STAGE2_CONFIG = f"configs/demo/stage2/{CONFIG}.yaml"
NUM_SAMPLES = 1000


def main(out: Path, overrides1: Sequence[str], overrides2: Sequence[str], num_samples: int) -> None:
    """The demo, from training to report."""
    # after the flags are read: `--help` does not wait for torch
    from demo.measure import measure
    from demo.report import print_table, write_report

    seconds: dict[str, float] = {}
    seconds["seconds_stage1"] = run(["main_stage1.py", "-m", STAGE1_CONFIG, "-r", str(out / "stage1"), *overrides1])
    stage1 = run_of(out / "stage1", CONFIG)
    seconds["seconds_stage2"] = run(
        ["main_stage2.py", "-m", STAGE2_CONFIG, "-v", str(stage1), "-r", str(out / "stage2"), *overrides2]
    )
    stage2 = run_of(out / "stage2", CONFIG)
    seconds["seconds_sampling"] = run(
        [
            "main_sampling_fid.py",
            "-v",
            str(stage1),
            "-a",
            str(stage2),
            "-n",
            str(num_samples),
            "--features",
            "classifier",
            "--features-cache",
            str(out / "classifiers"),
            "--save-dir",
            str(out),
        ]
    )
    sampling = run_of(out, "samples")
    summary = measure(stage1, stage2, sampling, out / "classifiers") | {
        name: round(value, 1) for name, value in seconds.items()
    }
    write_text_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    shutil.copyfile(sampling / "samples.png", out / "samples.png")
    write_report(out / "report.html", summary, stage1, stage2, out / "samples.png")
    print_table(summary)
    print(f"\n{out / 'report.html'}\n{out / 'samples.png'}\n{out / 'summary.json'}")


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m demo",
        description="Train both stages on digits, sample, score, report.",
        example="python -m demo --out runs/demo --stage1 experiment.max_steps=300",
        takes_words=False,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--num-samples", type=int, default=NUM_SAMPLES, help=f"default: {NUM_SAMPLES}")
    parser.add_argument("--stage1", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-1 config")
    parser.add_argument("--stage2", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-2 config")
    arguments = parser.parse_args()
    with exit_on_user_error():
        main(arguments.out, arguments.stage1, arguments.stage2, arguments.num_samples)
