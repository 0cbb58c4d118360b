"""`dataset.type: latents`: what `extract_codes.py` wrote: latents or codes instead of images.

Stage 2 trains from them without images or encoder. Of the k stored crops of a training image, epoch e takes number
e mod k. Those crops are what the image data set gives in the epochs 0 to k-1 of a run with the same seed.

Axes: B batch, N samples of the split, H W code grid, E latent channels, D code depth, L caption tokens.
"""

from __future__ import annotations

import io
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.config import DatasetConfig
from data.dataset import ImageDataset
from data.errors import DataError
from data.images.file_dataset import ReplacingDataset
from data.request import DatasetRequest
from data.shards.shard_dataset import ShardSamples, folder_of, indexed_by
from data.shards.shard_files import is_remote, local_path
from data.shards.shard_index import CODES, COND, LATENT
from data.shards.shard_manifest import LATENTS, read_manifest
from data.tokenizers.tokenizer_loading import load_tokenizer
from rqstack.arguments import height_width
from runtime.errors import UserError

LAYOUT = "train.manifest.json and val.manifest.json with their shards, as extract_codes.py writes them"
# what a batch calls each member, and the member
_MEMBERS = {"latent": LATENT, "codes": CODES, "cond": COND}
TOKENIZER_FOLDER = "tokenizer"  # of the captions


class LatentDataset(ReplacingDataset):
    """Batches hold `latent` (B, H, W, E) as stored (or `codes` int64 (B, H, W, D), where no latents were kept),
    `label`, `index`, and `cond` int64 (B, L) where the images had captions. There is no `image`.

    Attributes:
        manifest: where the latents come from; `tokenizer` is the digest of the stage-1 weights.
        contents: `latent` or `codes`.
        num_codes: size of the codebook of every depth, where it is known; codes outside are refused.
    """

    source: ShardSamples

    def __init__(self, request: DatasetRequest, manifest: dict[str, Any]) -> None:
        config = request.config
        root = folder_of(config, LAYOUT)
        places, indexes = indexed_by(manifest, root, config)
        labels_N = np.concatenate([index.label_N for index in indexes])
        if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < max(1, len(manifest["class_names"])):
            raise ValueError(
                f"latents: labels of {root} are none of the {len(manifest['class_names'])} classes of its manifest"
            )
        super().__init__(
            request,
            height_width("resolution", manifest["resolution"]),
            ShardSamples(places, indexes, config),
            labels_N,
            manifest["class_names"],
        )
        self.num_codes: tuple[int, ...] | None = None
        self.manifest, self.crops = manifest, manifest["crops"]
        self.contents = "latent" if "latent" in manifest["contents"] else "codes"
        self.shapes = {self.contents: tuple(manifest[f"{self.contents}_shape"])}
        self.types = {"latent": np.dtype(manifest["dtype"]), "codes": np.dtype(manifest["codes_dtype"])}
        if manifest["cond_length"]:
            self.shapes["cond"], self.types["cond"] = (manifest["cond_length"],), np.dtype(np.int32)
            if not is_remote(root) and (local_path(root) / TOKENIZER_FOLDER).is_dir():
                self.tokenizer = load_tokenizer(local_path(root) / TOKENIZER_FOLDER)

    @property
    def tokenizer_digest(self) -> str:
        """Of the stage-1 weights that made the latents."""
        return self.manifest["tokenizer"]

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        crop_B = np.zeros_like(index_B)
        if noise_key_B is not None and self.split == "train":
            crop_B = noise_key_B // len(self) % self.crops  # the epoch, modulo k
        used, rows = [], []
        for index, crop in zip(index_B.tolist(), crop_B.tolist()):
            found, row = self.first_readable(index, partial(self._row, crop=crop))
            used.append(found)
            rows.append(row)
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in self.shapes}
        batch = {name: value if name == "latent" else value.long() for name, value in batch.items()}
        return {**batch, "label": self.labels_N[used], "index": torch.from_numpy(index_B.copy())}

    def _row(self, index: int, crop: int) -> dict[str, np.ndarray]:
        row = {name: self._array(index, crop, name) for name in self.shapes}
        if "codes" in row and self.num_codes is not None:
            self._check_codes(index, row["codes"], self.num_codes)
        if "cond" in row and self.tokenizer is not None:
            self._check_range(index, "caption token", row["cond"], self.tokenizer.vocab_size)
        return row

    def _check_codes(self, index: int, codes_HWD: np.ndarray, num_codes: tuple[int, ...]) -> None:
        if codes_HWD.shape[-1] != len(num_codes):
            depth = codes_HWD.shape[-1]
            raise DataError(f"{self.source.name(index)} has codes of depth {depth}, the stage-1 model {len(num_codes)}")
        for depth, size in enumerate(num_codes):
            self._check_range(index, f"code of depth {depth}", codes_HWD[..., depth], size)

    def _check_range(self, index: int, what: str, numbers: np.ndarray, size: int) -> None:
        """DataError, which ends a run, and no replacement: such a shard was not written by `extract_codes.py`."""
        outside = numbers[(numbers < 0) | (numbers >= size)]
        if len(outside):
            raise DataError(f"{self.source.name(index)} has {what} {outside[0]}, outside of 0..{size - 1}")

    def _array(self, index: int, crop: int, name: str) -> np.ndarray:
        """One crop's part of a stored array (crops, ...), and no more, is read."""
        shape, kind = self.shapes[name], self.types[name]
        header = npy_header((self.crops, *shape), kind)
        if self.source.field(index, _MEMBERS[name], 0, len(header)) != header:
            raise ValueError(f"its {name} is no array of {self.crops} x {shape} {kind}")
        size = kind.itemsize * int(np.prod(shape))
        content = self.source.field(index, _MEMBERS[name], len(header) + crop * size, size)
        array = np.frombuffer(content, dtype=kind).reshape(shape)
        if kind.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"its {name} has values that are not finite")
        return array


def build_latents(request: DatasetRequest) -> ImageDataset:
    """A split of a folder (or URL) that `extract_codes.py` wrote."""
    return LatentDataset(request, _manifest(request.config, request.split))


def source_of_latents(config: DatasetConfig) -> DatasetConfig:
    """The data set of the images that latents were made from."""
    known = {field.name for field in fields(DatasetConfig)}
    return DatasetConfig(
        **{name: value for name, value in _manifest(config, "train")["dataset"].items() if name in known}
    )


def npy_header(shape: tuple[int, ...], kind: np.dtype) -> bytes:
    """The bytes before the numbers of a `.npy` file of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _manifest(config: DatasetConfig, split: str) -> dict[str, Any]:
    root = folder_of(config, LAYOUT)
    manifest = read_manifest(root, split)
    if manifest is None:
        raise UserError(f"latents: {root} has no manifest of the {split} split; expected {LAYOUT}")
    if manifest["kind"] != LATENTS:
        raise UserError(f"latents: {root} holds {manifest['kind']}; read it with dataset.type=shards")
    return manifest
