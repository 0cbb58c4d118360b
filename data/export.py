"""`python -m data.export --dataset NAME --split SPLIT OUT.npz`: the images of a split as other tools read them.

`OUT.npz` gets `arr_0`, uint8 (N, H, W, C), and `labels`, int64 (N,): every image once, in the order of the data set,
cropped and resized as for evaluation, not augmented, in RGB (C = 3) unless `channels=1` or `channels=4` is given.
`key=value` words are those of a config's `dataset` section (`resolution=256`). Memory holds a few batches, whatever N
is.

Axes: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.config import DATASET_HELP, SPLITS, DatasetConfig, dataset_words
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import exit_on_user_error, say, warn
from runtime.npz import Header, write_npz

if TYPE_CHECKING:
    from data.dataset import ImageDataset

BATCH_SIZE = 64


@dataclass(frozen=True)
class ExportSettings:
    """What the command line says."""

    dataset: DatasetConfig
    split: str
    output: Path
    num_workers: int = 0


def parse(words: Sequence[str] | None = None) -> ExportSettings:
    parser = ArgumentParser(
        prog="python -m data.export",
        description="Write the images of a data set's split to an .npz file.",
        example="python -m data.export --dataset digits --split val digits-val.npz",
        words=dataset_words(),
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help=DATASET_HELP)
    parser.add_argument("--split", required=True, help=f"one of {', '.join(SPLITS)}")
    parser.add_argument("--data-root", help="where its files lie (default: see data/README.md)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode images (default: 0)")
    parser.add_argument("output", metavar="OUT.npz", type=Path, help="the file to make")
    args = parser.parse_args(words)
    if args.output.suffix != ".npz":
        parser.error(f"the output {str(args.output)!r} must end in .npz")
    if args.split not in SPLITS:
        parser.error(f"--split {args.split!r} is unknown; choose one of {', '.join(SPLITS)}")
    config = load_config(DatasetConfig, None, args.overrides)
    config.type, config.root = args.dataset, args.data_root or config.root
    return ExportSettings(config, args.split, args.output, args.num_workers)


def export_npz(dataset: ImageDataset, path: Path, num_workers: int = 0) -> None:
    """Writes `arr_0` and `labels`. A label belongs to the image written, also where it replaces an unreadable one."""
    from data.loader import stored_batches

    labels: list[np.ndarray] = []

    def images() -> Iterator[np.ndarray]:
        for batch in stored_batches(dataset, BATCH_SIZE, num_workers=num_workers):
            labels.append(batch["label"].numpy())
            yield batch["image"].permute(0, 2, 3, 1).numpy()

    size = len(dataset)
    write_npz(
        path,
        {
            "arr_0": (Header((size, *dataset.resolution, dataset.channels), np.dtype(np.uint8)), images()),
            "labels": (Header((size,), np.dtype(np.int64)), (rows for rows in labels)),
        },
    )


def main(settings: ExportSettings) -> None:
    # after the flags are read: `--help` does not wait for torch
    from data.build import build_dataset
    from data.dataset import reading_notes

    dataset = build_dataset(settings.dataset, settings.split)
    export_npz(dataset, settings.output, settings.num_workers)
    say(f"{len(dataset)} images to {settings.output}")
    for line in reading_notes(dataset):
        warn(line)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
