"""Latents and codes of a whole data set into shards, by all ranks: see `extract_codes.py`.

Rank r of W writes the shards r, r + W, ...; what a shard holds depends neither on W nor on the batch size in which the
encoder sees its images. Crop c of training image i is the one that a run with the same seed sees in epoch c.

Legend: B batch, C channels, H W image or code grid, D code depth, E latent channels, L caption tokens, k crops.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import ImageDataset
from data.loader import listed_batches
from data.shards.cached_latents import TOKENIZER_FOLDER
from data.shards.shard_manifest import LATENTS, ShardEntry, begin, finish, shard_name
from data.shards.shard_writer import finished_shard, sample_key, write_shard
from rqstack.arguments import plain_size
from rqvae import RQVAE
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError
from sampling.choices import DTYPES


@dataclass(frozen=True)
class ExtractionSettings:
    """crops: augmented versions of every training image; keep: one of CONTENTS; dtype: of latents, one of DTYPES."""

    crops: int = 1
    keep: str = "both"
    dtype: str = "fp16"
    seed: int = 0
    batch_size: int = 32
    samples_per_shard: int = 5000
    num_workers: int = 4
    channels_last: bool = True


class Extractor:
    """Writes one split.

    Args:
        tokenizer: the stage 1; it is put where and how stage 2 has it, so that latents get the same bits.
        digest: `weights_digest` of it.
        dataset: the split.
        described: the data set's settings, for the manifest.
    """

    def __init__(
        self,
        tokenizer: RQVAE,
        digest: str,
        dataset: ImageDataset,
        described: dict[str, Any],
        settings: ExtractionSettings,
        env: DistEnv,
    ) -> None:
        tokenizer = tokenizer.to(env.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last) if settings.channels_last else tokenizer
        self.dataset, self.settings, self.env = dataset, settings, env
        self.crops = settings.crops if dataset.split == "train" else 1
        self.dtype = getattr(torch, DTYPES[settings.dtype])
        self.codes_dtype = np.dtype(np.uint16 if max(tokenizer.quantizer.num_codes) <= 2**16 else np.int32)
        self.header = self._header(digest, described)

    def _header(self, digest: str, described: dict[str, Any]) -> dict[str, Any]:
        example = self.dataset.fetch(np.zeros(1, dtype=np.int64), None)
        latent_BHWE, codes_BHWD = self._encode(example["image"])
        kept = {"latents": ["latent"], "codes": ["codes"], "both": ["latent", "codes"]}[self.settings.keep]
        return {
            "kind": LATENTS,
            "split": self.dataset.split,
            "tokenizer": digest,
            "dataset": described,
            "class_names": list(self.dataset.class_names),
            "resolution": plain_size(*self.dataset.resolution),
            "contents": kept,
            "crops": self.crops,
            "augmented": self.dataset.split == "train",
            "seed": self.settings.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "codes_dtype": self.codes_dtype.name,
            "latent_shape": list(latent_BHWE.shape[1:]),
            "codes_shape": list(codes_BHWD.shape[1:]),
            "cond_length": len(example["cond"][0]) if "cond" in example else None,
            "samples_per_shard": self.settings.samples_per_shard,
            "source_samples": len(self.dataset),
        }

    @torch.no_grad()
    def _encode(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 or float images -> latents as the quantizer sees them, fp32, and the nearest codes."""
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = image_BCHW.float().div_(127.5).sub_(1.0)
        latent_BHWE = self.tokenizer.encode(image_BCHW.to(self.env.device)).float()
        return latent_BHWE, self.tokenizer.quantizer.targets(latent_BHWE)[1]

    def run(self, folder: Path) -> list[ShardEntry]:
        """Writes this rank's shards and, when all have theirs, the manifest (on the main process).

        Raises:
            UserError: the split is there already, was begun with other settings, or cannot be written.
        """
        distributed.run_on_main(lambda: self._begin(folder))
        per_shard, total = self.settings.samples_per_shard, len(self.dataset)
        numbers = range(self.env.rank, -(-total // per_shard), self.env.world_size)
        entries = {}
        for number in tqdm(numbers, desc=self.dataset.split, unit="shard", disable=None if self.env.is_main else True):
            path, start = folder / shard_name(self.dataset.split, number), number * per_shard
            end = min(start + per_shard, total)
            entry = finished_shard(path) or write_shard(path, self._samples(start, end))
            assert entry is not None, "a shard of this split has samples"
            entries[number] = entry
        gathered = distributed.gather_objects([[number, asdict(entry)] for number, entry in entries.items()])
        found = [
            ShardEntry(**entry)
            for _, entry in sorted((pair for pairs in gathered for pair in pairs), key=lambda pair: pair[0])
        ]
        distributed.run_on_main(lambda: finish(folder, self.header, found))
        return found

    def _begin(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        begin(folder, self.header)
        if self.dataset.tokenizer is not None:
            self.dataset.tokenizer.save(folder / TOKENIZER_FOLDER)

    def _samples(self, start: int, end: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, {kind: bytes}) of the images start..end, all crops of one after the other."""
        index_N = np.repeat(np.arange(start, end), self.crops)
        key_N = np.tile(np.arange(self.crops), end - start) * len(self.dataset) + index_N
        rows: list[dict[str, np.ndarray]] = []
        batches = listed_batches(
            self.dataset,
            index_N,
            key_N if self.dataset.split == "train" else None,
            self.settings.batch_size,
            self.settings.num_workers,
            self.env.device,
        )
        for batch in batches:
            rows += self._rows(batch)
            while len(rows) >= self.crops:
                crops, rows = rows[: self.crops], rows[self.crops :]
                yield sample_key(int(crops[0]["index"])), _members(crops)

    def _rows(self, batch: dict[str, Tensor]) -> list[dict[str, np.ndarray]]:
        # the encoder always sees full batches: another shape may take another path, with other last bits
        count = len(batch["image"])
        missing = self.settings.batch_size - count
        image_BCHW = torch.cat([batch["image"], batch["image"][-1:].expand(missing, -1, -1, -1)])
        latent_BHWE, codes_BHWD = self._encode(image_BCHW)
        tensors = {"index": batch["index"], "label": batch["label"]}
        if self.settings.keep != "codes":
            tensors["latent"] = latent_BHWE.to(self.dtype)
        if self.settings.keep != "latents":
            tensors["codes"] = codes_BHWD
        if "cond" in batch:
            tensors["cond"] = batch["cond"]
        arrays = {name: value[:count].cpu().numpy() for name, value in tensors.items()}
        self._check_finite(arrays)
        kinds: dict[str, np.dtype[Any]] = {"codes": self.codes_dtype, "cond": np.dtype(np.int32)}
        arrays = {name: value.astype(kinds.get(name, value.dtype)) for name, value in arrays.items()}
        return [{name: value[row] for name, value in arrays.items()} for row in range(count)]

    def _check_finite(self, arrays: dict[str, np.ndarray]) -> None:
        if "latent" in arrays and not np.isfinite(arrays["latent"]).all():
            index = int(arrays["index"][~np.isfinite(arrays["latent"]).all(axis=(1, 2, 3))][0])
            raise UserError(f"the latent of image {index} does not fit {self.settings.dtype}; give --dtype fp32")


def _members(crops: list[dict[str, np.ndarray]]) -> dict[str, bytes]:
    """The members of a sample, whose rows are its crops."""
    sample = {"cls": str(int(crops[0]["label"])).encode()}
    for name in ("latent", "codes", "cond"):
        if name in crops[0]:
            file = io.BytesIO()
            np.lib.format.write_array(file, np.stack([crop[name] for crop in crops]), version=(1, 0))
            sample[f"{name}.npy"] = file.getvalue()
    return sample
