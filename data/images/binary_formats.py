"""The two binary formats small image sets come in: IDX (MNIST and its kin) and CIFAR-10's records.

Axes: N images of the split, C channels, H W image.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import ImageDataset
from data.images.memory_dataset import MemoryDataset, resize_all
from data.request import DatasetRequest
from data.roots import find_root, missing

FASHION_LAYOUT = (
    "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the two t10k- files (or FashionMNIST/raw)"
)
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR_LAYOUT = "cifar-10-batches-bin/ (data_batch_1.bin ...) or cifar-10-batches-py/ (data_batch_1 ...)"
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IDX_UBYTE = 0x08
_MOST_IDX_BYTES = 1 << 34  # 340,000 images of 224x224
_CIFAR_RECORD = 1 + 3 * 32 * 32


def build_fashion_mnist(request: DatasetRequest) -> ImageDataset:
    """60,000 training and 10,000 validation images of 28x28, padded to 32x32 and then resized to the wanted side."""
    root = find_root(request.config, FASHION_LAYOUT)
    prefix = "train" if request.split == "train" else "t10k"
    image_NHW = read_idx(_find(request, root, f"{prefix}-images-idx3-ubyte"), num_axes=3)
    labels_N = read_idx(_find(request, root, f"{prefix}-labels-idx1-ubyte"), num_axes=1)
    image_N1HW = torch.nn.functional.pad(torch.from_numpy(image_NHW).unsqueeze(1), (2, 2, 2, 2))
    return _in_memory(request, image_N1HW, labels_N, FASHION_CLASSES)


def build_cifar10(request: DatasetRequest) -> ImageDataset:
    """50,000 training and 10,000 validation images of 32x32.

    The binary version is read here; the Python version (pickles) through torchvision, which first compares every file
    with its published checksum.
    """
    root = find_root(request.config, CIFAR_LAYOUT)
    folder = root if (root / "test_batch.bin").is_file() else root / "cifar-10-batches-bin"
    if folder.is_dir():
        image_NCHW, labels_N = _read_cifar_records(request, folder)
    elif (root / "cifar-10-batches-py").is_dir():
        image_NCHW, labels_N = _read_cifar_pickles(root, request.split)
    else:
        raise missing(request.config, root, CIFAR_LAYOUT)
    return _in_memory(request, image_NCHW, labels_N, CIFAR_CLASSES)


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not, as a writable uint8 array; ValueError for anything else."""
    header_size = 4 + 4 * num_axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(header_size)
            if header[:4] != bytes((0, 0, _IDX_UBYTE, num_axes)) or len(header) < header_size:
                raise ValueError(f"{path} is not an IDX file of unsigned bytes with {num_axes} axes")
            shape = [int(length) for length in np.frombuffer(header, dtype=">u4", offset=4)]
            expected = math.prod(shape)
            if expected > _MOST_IDX_BYTES:
                raise ValueError(f"{path} says that it holds {expected} bytes; at most {_MOST_IDX_BYTES} are read")
            content = file.read(expected + 1)  # a few compressed bytes may stand for any number
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(content) != expected:
        found = f"{len(content)} bytes" if len(content) < expected else "more bytes"
        raise ValueError(f"{path} is damaged: {found} of data, {expected} expected")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _find(request: DatasetRequest, root: Path, name: str) -> Path:
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise missing(request.config, root, FASHION_LAYOUT)


def _read_cifar_records(request: DatasetRequest, folder: Path) -> tuple[Tensor, np.ndarray]:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if request.split == "train" else ["test_batch.bin"]
    parts = []
    for path in (folder / name for name in names):
        if not path.is_file():
            raise missing(request.config, path, CIFAR_LAYOUT)
        content = np.fromfile(path, dtype=np.uint8)
        if not len(content) or len(content) % _CIFAR_RECORD:
            raise ValueError(
                f"{path} is damaged: {len(content)} bytes are no whole number of {_CIFAR_RECORD}-byte records"
            )
        parts.append(content.reshape(-1, _CIFAR_RECORD))
    records = np.concatenate(parts)
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), records[:, 0]


def _read_cifar_pickles(root: Path, split: str) -> tuple[Tensor, np.ndarray]:
    from torchvision.datasets import CIFAR10

    try:
        raw = CIFAR10(root, train=split == "train")
    except RuntimeError as error:
        raise ValueError(f"{root / 'cifar-10-batches-py'} is incomplete or damaged: its checksums are wrong") from error
    return torch.from_numpy(raw.data).permute(0, 3, 1, 2), np.asarray(raw.targets)


def _in_memory(
    request: DatasetRequest, image_NCHW: Tensor, labels_N: np.ndarray, classes: tuple[str, ...]
) -> ImageDataset:
    if len(image_NCHW) != len(labels_N) or (len(labels_N) and labels_N.max() >= len(classes)):
        raise ValueError(
            f"{request.name} ({request.split}): {len(image_NCHW)} images and {len(labels_N)} labels do not fit"
        )
    return MemoryDataset(request, resize_all(image_NCHW, request), labels_N, classes)
