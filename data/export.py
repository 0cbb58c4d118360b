"""`python -m data.export --dataset NAME --split SPLIT OUT.npz`: the images of a split as other tools read them.

`OUT.npz` gets `arr_0`, uint8 (N, H, W, 3), and `labels`, int64 (N,): every image once, in the order of the data set,
cropped and resized as for evaluation, not augmented. `key=value` words are those of a config's `dataset` section
(`resolution=256`). Memory holds a few batches, whatever N is.

`-` writes records of (label, image) to stdout as one `.npy` array, for a reader that wants no file. Axes: B batch,
H W image, N images.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.build import DATASETS, build_dataset
from data.config import SPLITS, DatasetConfig
from data.dataset import ImageDataset
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import UserError, exit_on_user_error
from runtime.npz import Header, write_npz, write_rows

STREAM = "-"
BATCH_SIZE = 64


def parse(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description="Write the images of a data set's split to an .npz file.", allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--split", required=True, help=f"one of {', '.join(SPLITS)}")
    parser.add_argument("--data-root", help="where its files lie (default: see data/README.md)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode images (default: 0)")
    parser.add_argument("output", help="OUT.npz, or - for a stream of records on stdout")
    args = parser.parse_args(words)
    if args.output != STREAM and not args.output.endswith(".npz"):
        parser.error(f"the output {args.output!r} must end in .npz, or be - for stdout")
    return args


def batches_of(dataset: ImageDataset, num_workers: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """The whole split as stored batches: `image` uint8 (B, 3, H, W), `label`, `index`."""
    chunks = [list(range(start, min(start + BATCH_SIZE, len(dataset)))) for start in range(0, len(dataset), BATCH_SIZE)]
    if num_workers == 0 or dataset.in_memory:
        return map(dataset.__getitems__, chunks)
    return iter(DataLoader(dataset, batch_sampler=chunks, num_workers=num_workers, collate_fn=_unchanged))


def export_npz(dataset: ImageDataset, path: Path, num_workers: int = 0) -> None:
    """Writes `arr_0` and `labels`. A label belongs to the image written, also where it replaces an unreadable one."""
    labels: list[np.ndarray] = []

    def images() -> Iterator[np.ndarray]:
        for batch in batches_of(dataset, num_workers):
            labels.append(batch["label"].numpy())
            yield batch["image"].permute(0, 2, 3, 1).numpy()

    size = len(dataset)
    write_npz(
        path,
        {
            "arr_0": (Header((size, dataset.resolution, dataset.resolution, 3), np.dtype(np.uint8)), images()),
            "labels": (Header((size,), np.dtype(np.int64)), (rows for rows in labels)),
        },
    )


def export_stream(dataset: ImageDataset, num_workers: int = 0) -> None:
    """Writes one array of (label, image) records to stdout."""
    record = np.dtype([("label", "<i8"), ("image", "u1", (dataset.resolution, dataset.resolution, 3))])

    def records() -> Iterator[np.ndarray]:
        for batch in batches_of(dataset, num_workers):
            block = np.empty(len(batch["label"]), record)
            block["label"], block["image"] = batch["label"].numpy(), batch["image"].permute(0, 2, 3, 1).numpy()
            yield block

    write_rows(sys.stdout.buffer, Header((len(dataset),), record), records())
    sys.stdout.flush()


def main(args: Namespace) -> None:
    config = load_config(DatasetConfig, None, args.overrides)
    config.type, config.root = args.dataset, args.data_root or config.root
    if args.split not in SPLITS:
        raise UserError(f"--split {args.split!r} is unknown; choose one of {', '.join(SPLITS)}")
    dataset = build_dataset(config, args.split)
    if args.output == STREAM:
        export_stream(dataset, args.num_workers)
    else:
        export_npz(dataset, Path(args.output), args.num_workers)
        print(f"{len(dataset)} images to {args.output}")
    if count := dataset.corrupt_count():
        names = ", ".join(dataset.corrupt_names(3))
        print(
            f"warning: {count} unreadable images were replaced by the next readable one: {names}, ...", file=sys.stderr
        )


def _unchanged(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
