"""From a split of any data set to WebDataset shards: image files as they are, what is held or drawn as PNG files."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.dataset import Captioned, ImageDataset
from data.images.decoding import UNREADABLE, decode_rgb, image_format
from data.images.file_dataset import FileDataset
from data.shards.shard_manifest import IMAGES, begin, finish, shard_name
from data.shards.shard_writer import finished_shard, sample_key, write_shard
from rqstack.printable import printable
from runtime.errors import UserError, one_line

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
        if not isinstance(self.dataset, FileDataset):
            pixels_CHW = self.dataset.fetch(np.array([index]), None)["image"][0]
            file = io.BytesIO()
            Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(file, "PNG")
            return "png", file.getvalue()
        encoded = self.dataset.source.read(index)
        found = image_format(encoded)
        if found not in EXTENSIONS:
            raise ValueError(f"{found} is none of {', '.join(EXTENSIONS)}")
        if self.check:
            decode_rgb(encoded, self.dataset.rule.max_pixels)
        return EXTENSIONS[found], encoded

    def _captions(self, index: int) -> list[str]:
        return self.dataset.all_captions(index) if isinstance(self.dataset, Captioned) else []

    def _note(self, index: int, error: Exception) -> None:
        name, most = str(index), 0
        if isinstance(self.dataset, FileDataset):
            name, most = self.dataset.source.name(index), self.dataset.max_corrupt
        self.unreadable.append(name)
        tqdm.write(printable(f"warning: left out {name} ({one_line(error)})"), file=sys.stderr)
        if len(self.unreadable) > most:
            raise UserError(
                f"{len(self.unreadable)} images cannot be read, dataset.max_corrupt is {most}; the last one is {name}"
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
