"""`python -m data.prepare --dataset NAME OUT`: packs a data set into WebDataset shards with SHA-256 manifests.

Image files are packed as they are, without decoding; data sets that are held in memory or drawn become PNG files. What
comes out is read with `dataset.type=shards dataset.root=OUT`. `key=value` words are those of a config's `dataset`
section. An interrupted command goes on where it stopped when it is given again; what is complete is never overwritten.
`--verify OUT` reads everything and compares it with the manifests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.config import DATASET_HELP, SPLITS, DatasetConfig, dataset_words
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import EXIT_CODE, UserError, exit_on_user_error, say


@dataclass(frozen=True)
class PrepareSettings:
    """What the command line says; `dataset` is None when shards are verified and not written."""

    output: Path
    dataset: DatasetConfig | None = None
    splits: tuple[str, ...] = SPLITS
    samples_per_shard: int = 5000
    num_workers: int = 4
    check: bool = False


def parse(words: Sequence[str] | None = None) -> PrepareSettings:
    parser = ArgumentParser(
        prog="python -m data.prepare",
        description="Pack a data set into WebDataset shards.",
        example="python -m data.prepare --dataset folder --data-root pictures shards resolution=256",
        words=dataset_words(),
    )
    parser.add_argument("--dataset", metavar="NAME", help=DATASET_HELP)
    parser.add_argument("--data-root", help="where its files lie (default: see data/README.md)")
    parser.add_argument("--split", choices=(*SPLITS, "both"), default="both", help="default: both")
    parser.add_argument("--samples-per-shard", type=int, default=5000, help="default: 5000")
    parser.add_argument("--num-workers", type=int, default=4, help="shards written at a time (default: 4)")
    parser.add_argument("--check", action="store_true", help="decode every image file, to find damaged ones")
    parser.add_argument("--verify", action="store_true", help="compare the shards in OUT with their manifests")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder of the shards")
    args = parser.parse_args(words)
    if args.verify == (args.dataset is not None):
        parser.error("give either --dataset NAME, to pack it, or --verify")
    for flag in ("samples_per_shard", "num_workers"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    if args.verify:
        return PrepareSettings(args.output)
    config = load_config(DatasetConfig, None, args.overrides)
    config.type, config.root = args.dataset, args.data_root or config.root
    splits = SPLITS if args.split == "both" else (args.split,)
    return PrepareSettings(args.output, config, splits, args.samples_per_shard, args.num_workers, args.check)


def main(settings: PrepareSettings) -> int:
    # after the flags are read: `--help` does not wait for torch
    from data.build import build_dataset, dataset_row
    from data.shards.cached_latents import LatentDataset
    from data.shards.packing import pack
    from data.shards.shard_manifest import dataset_settings

    config, folder = settings.dataset, settings.output
    if config is None:
        return report(folder)
    if config.resolution is None and dataset_row(config).resolution is None:
        config.resolution = 256  # image files are packed in their own size; the config wants one all the same
    for split in settings.splits:
        dataset = build_dataset(config, split)
        if isinstance(dataset, LatentDataset):
            raise UserError("latents are shards already; --dataset wants images")
        packer = pack(
            dataset,
            dataset_settings(config),
            folder,
            settings.samples_per_shard,
            settings.num_workers,
            settings.check,
        )
        left_out = f", {len(packer.unreadable)} unreadable ones left out" if packer.unreadable else ""
        say(f"{split}: {len(dataset) - len(packer.unreadable)} images to {folder}{left_out}")
    return 0


def report(folder: Path) -> int:
    """Prints what is wrong with the shards of a folder; 0 when nothing is."""
    from data.shards.shard_manifest import verify

    count, problems = verify(folder)
    for line in problems:
        say(f"error: {line}", to_stderr=True)
    say(f"{count - len(problems)} of {count} shards are as their manifests say")
    return EXIT_CODE if problems else 0


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        sys.exit(main(parse()))
