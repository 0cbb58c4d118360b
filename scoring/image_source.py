"""Images to score or to take statistics of, from wherever they lie: a folder, an array file, tar shards, a data set.

| source                         | what it is                                                                         |
|--------------------------------|------------------------------------------------------------------------------------|
| `DIR`                          | all images below a folder, in sorted order; what `main_sampling_fid.py` wrote      |
| `FILE.npz`, `FILE.npy`         | `arr_0` (or `images`): uint8 (N, H, W, 3 or 1); labels `arr_1`, `labels` or `label` |
| `FILE.tar`, `x-{000..009}.tar` | WebDataset shards, also with `*`, or a folder of them; labels from `.cls`          |
| `dataset:NAME:SPLIT`           | a split of a data set, cropped and resized as for evaluation (`data.export`)       |

A source gives every image once, as uint8 with three channels, and knows their number beforehand. What is no image of
the common size is an error that names it; with `skip_unreadable`, images that cannot be decoded are left out and
counted. Memory holds a few batches. Axes: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.images.threaded_decoding import IMAGE_EXTENSIONS, FileImages, ShardImages, decode_all, expand_shards
from evaluation.protocol import shard_indices
from runtime.errors import UserError
from runtime.npz import Header, npy_header, read_arrays, read_headers, stream_array
from scoring.exported_dataset import DATASET_PREFIX, ExportedDataset

Batch = dict[str, Tensor]
IMAGE_KEYS = ("arr_0", "images")
LABEL_KEYS = ("arr_1", "labels", "label")
SOURCES = "a folder of images, an .npz or .npy file, .tar shards, or dataset:NAME:SPLIT"


class ImageSource(Protocol):
    """A known number of uint8 images of one size.

    Attributes:
        name: what the user called it.
        skipped: images left out because they cannot be decoded; complete before the first batch.
    """

    name: str
    skipped: Sequence[str]

    def __len__(self) -> int:
        """Number of images that `batches` of all ranks give together."""

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """`image` uint8 (B, 3, H, W), `index` int64 (B,) and, where they are known, `label` int64 (B,) of this rank."""


def open_source(
    spec: str, *, dataset_options: Sequence[str] = (), skip_unreadable: bool = False, threads: int | None = None
) -> ImageSource:
    """The source that a user names; see the table at the top of the module.

    Args:
        dataset_options: further words for `python -m data.export`, such as `resolution=256`.
        skip_unreadable: leave out images that cannot be decoded (takes one more pass over encoded images).
        threads: that decode; None takes one for every core, at most 16.

    Raises:
        UserError: nothing there, no images, or a damaged file.
    """
    if spec.startswith(DATASET_PREFIX):
        return ExportedDataset(spec, dataset_options)
    path = Path(spec).expanduser()
    if path.suffix in (".npz", ".npy") and not path.is_dir():
        return ArrayImages(path)
    if shards := expand_shards(spec):
        return EncodedImages(ShardImages(spec, shards), skip_unreadable, threads)
    if not path.is_dir():
        raise UserError(f"no images at {spec!r}; expected {SOURCES}")
    if (path / "samples.npz").is_file():
        return ArrayImages(path / "samples.npz")
    if (path / "images").is_dir() and (path / "samples.png").is_file():
        path = path / "images"  # beside the preview of a run of samples
    return EncodedImages(FileImages(path, spec), skip_unreadable, threads)


class EncodedImages:
    """Image files or shard members, decoded by threads, in order."""

    def __init__(self, files: FileImages | ShardImages, skip_unreadable: bool = False, threads: int | None = None):
        self.files, self.name, self.threads = files, files.name, threads
        self.skipped: list[str] = []
        if skip_unreadable:
            decoded = decode_all(files, range(len(files)), threads)
            unreadable = {index for index, image in decoded if isinstance(image, UserError)}
            self.skipped = [files.label(index) for index in sorted(unreadable)]
            files.leave_out(unreadable)
        if not len(files):
            kinds = ", ".join(IMAGE_EXTENSIONS)
            raise UserError(f"no {'readable ' if self.skipped else ''}images in {self.name}; images end in {kinds}")

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `ImageSource`; UserError for an image that cannot be decoded or has another size than the first."""
        mine = shard_indices(len(self), rank, world_size)
        decoded = self._of_one_size(decode_all(self.files, mine, self.threads))
        while rows := list(islice(decoded, batch_size)):
            index_B = torch.tensor([index for index, _ in rows])
            image_BHWC = torch.from_numpy(np.stack([image_HWC for _, image_HWC in rows]))
            batch = {"image": image_BHWC.permute(0, 3, 1, 2).contiguous(), "index": index_B}
            if self.files.labels_N is not None:
                batch["label"] = torch.tensor([self.files.labels_N[index] for index, _ in rows])
            yield batch

    def _of_one_size(self, decoded: Iterator) -> Iterator[tuple[int, np.ndarray]]:
        first: tuple[int, np.ndarray] | None = None
        for index, image_HWC in decoded:
            if isinstance(image_HWC, UserError):
                raise image_HWC
            first = first or (index, image_HWC)
            if image_HWC.shape != first[1].shape:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (image_HWC.shape, first[1].shape)]
                raise UserError(
                    f"{self.files.label(index)} is {sizes[0]}, {self.files.label(first[0])} is {sizes[1]}: "
                    "the images of a source must have one size"
                )
            yield index, image_HWC


class ArrayImages:
    """The images of an `.npz` or `.npy` file, read front to back; the whole file is never in memory."""

    skipped: Sequence[str] = ()

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        headers = {"arr_0": npy_header(path)} if path.suffix == ".npy" else read_headers(path)
        self.key = next((key for key in IMAGE_KEYS if key in headers), None)
        if self.key is None:
            raise UserError(f"{path} holds no images: it has {', '.join(headers) or 'nothing'}, not arr_0")
        self.header = _checked(path, self.key, headers[self.key])
        self.labels_N = self._labels(headers)

    def _labels(self, headers: dict[str, Header]) -> np.ndarray | None:
        for key in LABEL_KEYS:
            if key in headers and headers[key].shape == (len(self),) and headers[key].dtype.kind in "iu":
                return read_arrays(self.path, [key])[key].astype(np.int64)
        return None

    def __len__(self) -> int:
        return self.header.shape[0]

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `ImageSource`. Every rank reads the file, and keeps its own rows."""
        start = 0  # a multiple of world_size for every block
        for image_BHWC in stream_array(self.path, self.key, batch_size * world_size):
            mine_BHWC = image_BHWC[rank::world_size]
            index_B = np.arange(start, start + len(image_BHWC))[rank::world_size]
            start += len(image_BHWC)
            if len(index_B):
                yield _batch(mine_BHWC, index_B, self.labels_N)


def _checked(path: Path, key: str, header: Header) -> Header:
    if header.dtype != np.uint8:
        raise UserError(f"{key} of {path} is {header.dtype}; images must be uint8 in 0..255 (no guess is made)")
    if not (len(header.shape) == 4 and header.shape[3] in (1, 3) or len(header.shape) == 3):
        raise UserError(f"{key} of {path} has shape {header.shape}; images must be (N, height, width, 3 or 1)")
    if 0 in header.shape:
        raise UserError(f"{key} of {path} has shape {header.shape}: there are no images in it")
    return header


def _batch(image_BHWC: np.ndarray, index_B: np.ndarray, labels_N: np.ndarray | None) -> Batch:
    if image_BHWC.ndim == 3:
        image_BHWC = image_BHWC[..., None]
    image_BCHW = torch.from_numpy(np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2)))
    batch = {"image": image_BCHW.expand(-1, 3, -1, -1), "index": torch.from_numpy(index_B)}
    return batch if labels_N is None else {**batch, "label": torch.from_numpy(labels_N[index_B])}
