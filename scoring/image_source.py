"""Images to score or to take statistics of, from wherever they lie: a folder, an array file, tar shards, a data set.

| source                         | what it is                                                                         |
|--------------------------------|------------------------------------------------------------------------------------|
| `DIR`                          | all images below a folder, in sorted order; what `main_sampling_fid.py` wrote      |
| `FILE.npz`, `FILE.npy`         | `arr_0`, `images`: uint8 (N, H, W, 1, 3 or 4); labels `arr_1`, `labels` or `label` |
| `FILE.tar`, `x-{000..009}.tar` | WebDataset shards, also with `*`, or a folder of them; labels from `.cls`          |
| `dataset:NAME:SPLIT`           | a split of a data set, cropped and resized as for evaluation                       |

A source gives every image once, as uint8 with three channels (grey three times, RGBA on white), and knows their number
beforehand. What is no image of the common size is an error that names it; with `skip_unreadable`, images that cannot be
decoded are left out and counted; with `mixed_sizes`, image files may have any sizes, which the feature network's own
resize takes to its input.
Memory holds a few batches. Axes: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data import DatasetConfig, build_dataset
from data.build import images_behind
from data.config import BACKGROUND, CHANNELS
from data.dataset import reading_notes
from data.images.decoding import decode_in_order
from data.images.encoded_images import Chosen, Encoded, PackedPaths
from data.images.listing import IMAGE_EXTENSIONS, list_images
from data.loader import stored_batches
from data.shards.image_shards import ShardImages
from data.shards.shard_names import shards_named
from data.shards.tar_members import MAX_CLASSES, checked_label
from evaluation.protocol import check_uint8_images, shard_indices
from runtime.errors import UserError, one_line, warn
from runtime.npz import Header, npy_header, read_arrays, read_headers, stream_array
from scoring.settings import DATASET_PREFIX, SOURCES

Batch = dict[str, Tensor]
Labels = Sequence[int] | np.ndarray
IMAGE_KEYS = ("arr_0", "images")
LABEL_KEYS = ("arr_1", "labels", "label")
_CHANNELS = (1, 2, 3, 4)  # the length of an axis of channels
_SAMPLE_NAME = re.compile(r"(?P<number>\d+)(?:_class(?P<label>\d+))?\.\w+")
SAMPLES_ARCHIVE = "samples.npz"
_DATASET_WORKERS = 4  # processes that decode the files of a data set


class ImageSource(Protocol):
    """A known number of uint8 images of one size.

    Attributes:
        name: what the user called it.
        skipped: images left out because they cannot be decoded; complete before the first batch.
        numbered: `index` is the number that each image was drawn as; otherwise its place in a listing, of no meaning.
    """

    name: str
    numbered: bool
    skipped: Sequence[str]

    @property
    def labels_N(self) -> Labels | None:
        """The classes of all images (N,), known without reading them; None where they have none."""
        ...

    def __len__(self) -> int:
        """Number of images that `batches` of all ranks give together."""
        ...

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """`image` uint8 (B, 3, H, W), `index` int64 (B,) and, where they are known, `label` int64 (B,) of this rank."""
        ...


def open_source(
    spec: str,
    *,
    dataset: DatasetConfig | None = None,
    skip_unreadable: bool = False,
    threads: int | None = None,
    mixed_sizes: bool = False,
) -> ImageSource:
    """The source that a user names; see the table at the top of the module.

    Args:
        dataset: settings of a `dataset:NAME:SPLIT` beside its type.
        skip_unreadable: leave out images that cannot be decoded (takes one more pass over encoded images).
        threads: that decode; None takes one for every core, at most 16.
        mixed_sizes: image files may have any sizes; those of a batch have one.

    Raises:
        UserError: nothing there, no images, or a damaged file.
    """
    if spec.startswith(DATASET_PREFIX):
        return DatasetImages(spec, dataset)
    path = Path(spec).expanduser()
    if path.suffix.lower() in (".npz", ".npy") and not path.is_dir():
        return ArrayImages(path, numbered=path.name == SAMPLES_ARCHIVE and is_run_of_samples(path.parent))
    if shards := shards_named(spec):
        members = ShardImages(shards)
        return EncodedImages(spec, members, members.labels_N, skip_unreadable, threads, mixed_sizes)
    if not path.is_dir():
        raise UserError(f"no images at {spec!r}; expected {SOURCES}")
    if (path / SAMPLES_ARCHIVE).is_file():
        return ArrayImages(path / SAMPLES_ARCHIVE, numbered=is_run_of_samples(path))
    if (path / "images").is_dir() and is_run_of_samples(path):
        path = path / "images"
    names = list_images(path)
    files = PackedPaths(path, names)
    images = EncodedImages(spec, files, _labels_in_names(names), skip_unreadable, threads, mixed_sizes)
    images.numbered = not images.skipped and _are_samples(path, names)
    return images


def is_run_of_samples(folder: Path) -> bool:
    """Whether a sampling script wrote the folder: it holds the preview of its images."""
    return (folder / "samples.png").is_file()


def _are_samples(folder: Path, names: Sequence[str]) -> bool:
    """Whether names say that these are samples 0 to N-1, in order: as a sampling script calls them, in its folder or,
    with their classes, anywhere.
    """
    found = [_SAMPLE_NAME.fullmatch(name.rpartition("/")[2]) for name in names]
    if not all(match and int(match["number"]) == place for place, match in enumerate(found)):
        return False
    return is_run_of_samples(folder.parent) or all(match and match["label"] for match in found)


def default_name(source: str) -> str:
    """`cifar10-train` of `dataset:cifar10:train`, else the last part of a path without its ending."""
    if source.startswith(DATASET_PREFIX):
        return "-".join(source.split(":")[1:])
    stem = Path(source).expanduser().resolve().name.removesuffix(".npz")
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-") or "images"


class _Warnings:
    """Lines on stderr, each once, however often a source is read."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            warn(line)


class EncodedImages:
    """Image files or shard members, decoded by threads, in order."""

    numbered = False

    def __init__(
        self,
        name: str,
        files: Encoded,
        labels_N: Labels | None = None,
        skip_unreadable: bool = False,
        threads: int | None = None,
        mixed_sizes: bool = False,
    ) -> None:
        self.mixed_sizes = mixed_sizes
        self.name, self.files, self.labels_N, self.threads = name, files, labels_N, threads
        self.skipped: Sequence[str] = ()
        self.flattened: set[int] = set()
        self.warnings = _Warnings()
        if skip_unreadable:
            self._leave_out_unreadable()
        if not len(self.files):
            kinds = ", ".join(IMAGE_EXTENSIONS)
            raise UserError(f"no {'readable ' if self.skipped else ''}images in {name}; images end in {kinds}")

    def _leave_out_unreadable(self) -> None:
        decoded = decode_in_order(self.files, range(len(self.files)), self.threads)
        readable = np.array([not isinstance(image, UserError) for _, image in decoded], dtype=bool)
        self.skipped = [self.files.name(index) for index in np.flatnonzero(~readable).tolist()]
        kept_N = np.flatnonzero(readable)
        self.files = Chosen(self.files, kept_N)
        if self.labels_N is not None:
            self.labels_N = [self.labels_N[index] for index in kept_N.tolist()]

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `ImageSource`; UserError for an image that cannot be decoded or has another size than the first."""
        mine = shard_indices(len(self), rank, world_size)
        decoded = self._of_one_size(decode_in_order(self.files, mine, self.threads, self.flattened))
        while rows := list(islice(decoded, batch_size)):
            by_size: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
            for row in rows:
                by_size.setdefault(row[1].shape, []).append(row)
            yield from map(self._batch, by_size.values())
        if self.flattened:
            self.warnings.say(f"{len(self.flattened)} images have transparency, shown over {BACKGROUND}: {self.name}")

    def _batch(self, rows: list[tuple[int, np.ndarray]]) -> Batch:
        image_BHWC = torch.from_numpy(np.stack([image_HWC for _, image_HWC in rows]))
        batch = {
            "image": image_BHWC.permute(0, 3, 1, 2).contiguous(),
            "index": torch.tensor([index for index, _ in rows]),
        }
        if self.labels_N is not None:
            batch["label"] = torch.tensor([self.labels_N[index] for index, _ in rows])
        return batch

    def _of_one_size(self, decoded: Iterable[tuple[int, np.ndarray | UserError]]) -> Iterator[tuple[int, np.ndarray]]:
        first: tuple[int, np.ndarray] | None = None
        for index, image_HWC in decoded:
            if isinstance(image_HWC, UserError):
                raise image_HWC
            first = first or (index, image_HWC)
            if image_HWC.shape != first[1].shape and not self.mixed_sizes:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (image_HWC.shape, first[1].shape)]
                raise UserError(
                    f"{self.files.name(index)} is {sizes[0]}, {self.files.name(first[0])} is {sizes[1]}: "
                    "the images of a source must have one size, or mixed_sizes=true (--mixed-sizes) takes each as it is"
                )
            yield index, image_HWC


class ArrayImages:
    """The images of an `.npz` or `.npy` file, read front to back; the whole file is never in memory."""

    skipped: Sequence[str] = ()

    def __init__(self, path: Path, numbered: bool = False) -> None:
        self.path, self.name, self.numbered = path, str(path), numbered
        headers = {"arr_0": npy_header(path)} if path.suffix.lower() == ".npy" else read_headers(path)
        found = [key for key in IMAGE_KEYS if key in headers]
        if not found:
            raise UserError(f"{path} holds no images: it has {', '.join(headers) or 'nothing'}, not arr_0")
        self.key = found[0]
        self.header = _checked(path, self.key, headers[self.key])
        self.labels_N = self._labels(headers)

    def _labels(self, headers: dict[str, Header]) -> np.ndarray | None:
        for key in LABEL_KEYS:
            if key in headers and headers[key].shape == (len(self),) and headers[key].dtype.kind in "iu":
                label_N = read_arrays(self.path, [key])[key]
                for label in label_N[(label_N < 0) | (label_N >= MAX_CLASSES)][:1]:
                    checked_label(int(label), f"{key} of {self.path}")
                return label_N.astype(np.int64)
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


class DatasetImages:
    """The images of `dataset:NAME:SPLIT` as evaluation sees them, with their labels. An unreadable one is replaced, as
    in training, by the next readable one; how many were is said on stderr.

    Args:
        config: settings of the data set beside its type.

    Raises:
        UserError: the name is malformed, or what the data set refuses.
    """

    skipped: Sequence[str] = ()
    numbered = False

    def __init__(self, spec: str, config: DatasetConfig | None = None) -> None:
        parts = spec.removeprefix(DATASET_PREFIX).split(":")
        if len(parts) != 2 or not all(parts):
            raise UserError(f"{spec!r} must be dataset:NAME:SPLIT, such as dataset:cifar10:train")
        self.name = spec
        with self._named_errors():
            named = replace(config or DatasetConfig(), type=parts[0], dataset=None)
            self.dataset = build_dataset(images_behind(named), parts[1])
        self.labels_N = self.dataset.labels_N.numpy()
        self.warnings = _Warnings()

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `ImageSource`; UserError when more images than dataset.max_corrupt cannot be read."""
        with self._named_errors():
            for batch in stored_batches(self.dataset, batch_size, rank, world_size, _DATASET_WORKERS):
                yield {name: batch[name] for name in ("image", "index", "label")}
        for line in reading_notes(self.dataset):
            self.warnings.say(line)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            raise UserError(f"{self.name}: {one_line(error)}") from error


def _labels_in_names(paths: Sequence[str]) -> list[int] | None:
    """The numbers in names such as `000012_class7.png`, when all have one."""
    matches = (_SAMPLE_NAME.fullmatch(path.rpartition("/")[2]) for path in paths)
    found = [match["label"] for match in matches if match and match["label"]]
    if not found or len(found) != len(paths):
        return None
    return [checked_label(int(label), f"the name of {path}") for label, path in zip(found, paths)]


def _checked(path: Path, key: str, header: Header) -> Header:
    if header.dtype != np.uint8:
        raise UserError(f"{key} of {path} is {header.dtype}; images must be uint8 in 0..255 (no guess is made)")
    shape = header.shape
    if not (len(shape) == 4 and shape[3] in CHANNELS or len(shape) == 3):
        raise UserError(f"{key} of {path} has shape {shape}; images must be (N, height, width, 1, 3 or 4)")
    if len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in _CHANNELS):
        raise UserError(
            f"{key} of {path} has shape {shape}: one image with channels or {shape[0]} grey ones? Save one image as "
            "(1, height, width, 3), grey ones as (N, height, width, 1)"
        )
    if 0 in header.shape:
        raise UserError(f"{key} of {path} has shape {header.shape}: there are no images in it")
    return header


def _batch(image_BHWC: np.ndarray, index_B: np.ndarray, labels_N: np.ndarray | None) -> Batch:
    if image_BHWC.ndim == 3:
        image_BHWC = image_BHWC[..., None]
    image_BCHW = torch.from_numpy(np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2)))
    batch = {"image": check_uint8_images(image_BCHW), "index": torch.from_numpy(index_B)}
    return batch if labels_N is None else {**batch, "label": torch.from_numpy(labels_N[index_B])}
