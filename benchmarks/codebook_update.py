"""Codebook updates per depth (published) against deferred (one for each optimizer step), with small and large batches.

Trains the same RQ-VAE on digits four times on the same number of images and measures the reconstruction error three
ways: in train mode while training (last window of the log), and afterwards in eval mode on both splits. The distance
between the first two is what updating inside the forward costs. `python -m benchmarks.codebook_update`; a table, then
one JSON line.
"""

import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.outputs.result_line import end_with_line
from runtime.cli import ArgumentParser
from runtime.records.metrics_file import METRICS_FILE, read_metrics
from training.launch import LaunchSettings, Session, training_parser
from training.stages.stage1 import Stage1, Stage1Config

CONFIG = "configs/demo/stage1/digits.yaml"
# 16x16 pixels, and one codebook for all depths as in every published model
CHANGES = [
    "dataset.resolution=16",
    "arch.ddconfig.resolution=16",
    "arch.ddconfig.ch_mult=[1,1,2]",
    "arch.hparams.shared_codebook=true",
    "arch.hparams.n_embed=256",
]
UPDATES = ("per_depth", "deferred")


def measure(update: str, batch_size: int, num_images: int, result_path: str, seed: int) -> dict[str, Any]:
    """One training run; mean squared errors on the [-1, 1] scale."""
    steps = num_images // batch_size
    overrides = [
        *CHANGES,
        f"arch.hparams.codebook_update={update}",
        f"experiment.batch_size={batch_size}",
        f"experiment.max_steps={steps}",
        f"experiment.test_steps={steps}",
        f"experiment.save_steps={steps}",
        f"experiment.log_steps={max(1, steps // 8)}",
    ]
    args = training_parser("").parse_args(["-m", CONFIG, "-r", result_path, "--seed", str(seed), *overrides])
    session = Session(Stage1Config, Stage1, LaunchSettings.from_flags(args))
    with session.log:
        session.train()
        splits = {
            name: session.stage.evaluate(session.batches(dataset))["recon_mse"]
            for name, dataset in (("train", session.train_set), ("val", session.val_set))
        }
    windows = [
        line["train/loss_recon"] for line in read_metrics(session.run_dir / METRICS_FILE) if "train/loss_recon" in line
    ]
    return {
        "update": update,
        "batch_size": batch_size,
        "steps": steps,
        "train_mode": windows[-1],
        "eval_train": splits["train"],
        "eval_val": splits["val"],
    }


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.codebook_update",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.codebook_update --num-images 2048 --batch-sizes 16",
        takes_words=False,
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--num-images", type=int, default=32768, help="training images of each run, repeats counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as result_path:
        rows = [
            measure(update, batch_size, args.num_images, result_path, args.seed)
            for batch_size in args.batch_sizes
            for update in UPDATES
        ]
    print("| batch | codebook update | steps | train mode | train split, eval | validation split, eval |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        errors = " | ".join(f"{row[name]:.5f}" for name in ("train_mode", "eval_train", "eval_val"))
        print(f"| {row['batch_size']} | {row['update']} | {row['steps']} | {errors} |")
    result = {
        "benchmark": "codebook_update",
        "config": [CONFIG, *CHANGES],
        "num_images": args.num_images,
        "seed": args.seed,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    end_with_line(result, args.output)


if __name__ == "__main__":
    main()
