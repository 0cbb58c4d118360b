"""`python -m data.prepare --dataset NAME OUT`: packs a data set into WebDataset shards with SHA-256 manifests.

Image files are packed as they are, without decoding; data sets that are held in memory or drawn become PNG files. What
comes out is read with `dataset.type=shards dataset.root=OUT`. `key=value` words are those of a config's `dataset`
section. An interrupted command goes on where it stopped when it is given again; what is complete is never overwritten.
`--verify OUT` reads everything and compares it with the manifests.
"""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.build import DATASETS, build_dataset, dataset_row
from data.config import SPLITS, DatasetConfig
from data.dataset import ImageDataset
from data.images.decoding import UNREADABLE, decode_rgb, image_format
from data.images.file_dataset import ReplacingDataset
from data.shards.cached_latents import LatentDataset
from data.shards.shard_manifest import IMAGES, begin, dataset_settings, finish, shard_name, verify
from data.shards.shard_writer import finished_shard, sample_key, write_shard
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import EXIT_CODE, UserError, exit_on_user_error, one_line

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm", "MPO": "jpg"}


class Packer:
    """One split of a data set as samples of shards.

    Args:
        dataset: any data set of images.
        check: decode every image file, to leave out those that are damaged.
    """

    def __init__(self, dataset: ImageDataset, check: bool = False) -> None:
        self.dataset, self.check = dataset, check
        self.unreadable: list[str] = []

    def samples(self, start: int, end: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, {kind: bytes}) of the images start..end; unreadable ones are left out and noted."""
        for index in range(start, end):
            try:
                kind, encoded = self._image(index)
            except UNREADABLE as error:
                self._note(index, error)
                continue
            sample = {kind: encoded, "cls": str(int(self.dataset.labels_N[index])).encode()}
            if captions := self._captions(index):
                sample["txt"] = "\n".join(" ".join(text.split()) for text in captions).encode("utf-8")
            yield sample_key(index), sample

    def _image(self, index: int) -> tuple[str, bytes]:
        if not isinstance(self.dataset, ReplacingDataset):
            pixels_CHW = self.dataset.fetch(np.array([index]), None)["image"][0]
            file = io.BytesIO()
            Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(file, "PNG")
            return "png", file.getvalue()
        encoded = self.dataset.source.read(index)
        found = image_format(encoded)
        if found not in EXTENSIONS:
            raise ValueError(f"{found} is none of {', '.join(EXTENSIONS)}")
        if self.check:
            decode_rgb(encoded, self.dataset.max_image_pixels)
        return EXTENSIONS[found], encoded

    def _captions(self, index: int) -> list[str]:
        if table := getattr(self.dataset, "table", None):
            return table.texts_of(index)
        return self.dataset.captions([index]) if hasattr(self.dataset, "captions") else []

    def _note(self, index: int, error: Exception) -> None:
        name = self.dataset.source.name(index) if isinstance(self.dataset, ReplacingDataset) else str(index)
        self.unreadable.append(name)
        tqdm.write(f"warning: left out {name} ({one_line(error)})", file=sys.stderr)
        if len(self.unreadable) > getattr(self.dataset, "max_corrupt", 0):
            raise UserError(
                f"{len(self.unreadable)} images cannot be read, dataset.max_corrupt is "
                f"{self.dataset.max_corrupt}; the last one is {name}"
            )


def pack(
    dataset: ImageDataset,
    settings: dict[str, Any],
    folder: Path,
    samples_per_shard: int,
    threads: int = 1,
    check: bool = False,
) -> Packer:
    """Writes the missing shards of a split and its manifest; gives the packer, which knows what was left out."""
    split, total = dataset.split, len(dataset)
    header = {
        "kind": IMAGES,
        "split": split,
        "dataset": settings,
        "class_names": list(dataset.class_names),
        "source_samples": total,
        "samples_per_shard": samples_per_shard,
    }
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, header)
    packer = Packer(dataset, check)

    def one(number: int) -> Any:
        path, start = folder / shard_name(split, number), number * samples_per_shard
        return finished_shard(path) or write_shard(path, packer.samples(start, min(start + samples_per_shard, total)))

    count = -(-total // samples_per_shard)
    with ThreadPoolExecutor(threads) as pool:  # reading, hashing and PNG coding leave Python's lock alone
        futures = [pool.submit(one, number) for number in range(count)]
        try:
            entries = [future.result() for future in tqdm(futures, desc=split, unit="shard", disable=None)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    finish(folder, header, [entry for entry in entries if entry is not None])
    return packer


def parse(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(
        prog="python -m data.prepare", description="Pack a data set into WebDataset shards.", allow_abbrev=False
    )
    parser.add_argument("--dataset", help=f"one of {', '.join(DATASETS)}")
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
    return args


def main(args: Namespace) -> int:
    if args.verify:
        return report(args.output)
    config = load_config(DatasetConfig, None, args.overrides)
    config.type, config.root = args.dataset, args.data_root or config.root
    if config.resolution is None and dataset_row(config).resolution is None:
        config.resolution = 256  # image files are packed in their own size; the config wants one all the same
    for split in SPLITS if args.split == "both" else (args.split,):
        dataset = build_dataset(config, split)
        if isinstance(dataset, LatentDataset):
            raise UserError("latents are shards already; --dataset wants images")
        settings = dataset_settings(config)
        packer = pack(dataset, settings, args.output, args.samples_per_shard, args.num_workers, args.check)
        left_out = f", {len(packer.unreadable)} unreadable ones left out" if packer.unreadable else ""
        print(f"{split}: {len(dataset) - len(packer.unreadable)} images to {args.output}{left_out}")
    return 0


def report(folder: Path) -> int:
    """Prints what is wrong with the shards of a folder; 0 when nothing is."""
    count, problems = verify(folder)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    print(f"{count - len(problems)} of {count} shards are as their manifests say")
    return EXIT_CODE if problems else 0


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        sys.exit(main(parse()))
