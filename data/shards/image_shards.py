"""The images of tar shards as scoring reads them: by the index that training reads them by.

Axes: N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.images.encoded_images import check_size
from data.shards.shard_index import IMAGE, NO_LABEL, ShardIndex, scan_shard
from runtime.errors import UserError, one_line


class ShardImages:
    """Images of uncompressed tar files in the WebDataset layout; see `data.shards.shard_index`.

    Attributes:
        labels_N: of every image; None where one has none.

    Raises:
        UserError: a shard that cannot be read or is refused.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = tuple(shards)
        indexes = [_scanned(shard) for shard in shards]
        chosen = [index.size_NF[:, IMAGE] >= 0 for index in indexes]
        self.shard_N = np.repeat(np.arange(len(indexes)), [int(chosen_N.sum()) for chosen_N in chosen])
        self.keys_N = _joined([index.keys_N[chosen_N] for index, chosen_N in zip(indexes, chosen)])
        self.start_N = _joined([index.start_NF[chosen_N, IMAGE] for index, chosen_N in zip(indexes, chosen)])
        self.size_N = _joined([index.size_NF[chosen_N, IMAGE] for index, chosen_N in zip(indexes, chosen)])
        label_N = _joined([index.label_N[chosen_N] for index, chosen_N in zip(indexes, chosen)])
        self.labels_N = label_N.tolist() if len(label_N) and (label_N != NO_LABEL).all() else None

    def __len__(self) -> int:
        return len(self.shard_N)

    def name(self, index: int) -> str:
        """What an error calls the image."""
        return f"{self.keys_N[index].decode('utf-8', 'replace')} of {self.shards[self.shard_N[index]]}"

    def names(self) -> Iterator[str]:
        """The keys."""
        return (os.fsdecode(key) for key in self.keys_N.tolist())

    def size(self, index: int) -> int:
        """Bytes of the member."""
        return int(self.size_N[index])

    def read(self, index: int) -> bytes:
        """The encoded bytes; OSError when they cannot be had."""
        check_size(self.size(index))
        with open(self.shards[self.shard_N[index]], "rb") as file:
            file.seek(int(self.start_N[index]))
            return file.read(int(self.size_N[index]))


def _scanned(shard: Path) -> ShardIndex:
    try:
        with open(shard, "rb") as file:
            return scan_shard(file, str(shard))
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
