"""The order in which training sees its samples, derived and never stored.

Training counts *positions* 0, 1, 2, ... without end. Epoch e is the positions [e*N, (e+1)*N), shuffled by a permutation
that depends on (seed, e) alone: of all samples, or, where random access is slow (`Groups`), of the shards, with the
samples of a few of them mixed. The global batch of a step is a contiguous range of positions, cut into micro-batches
and ranks, so the samples of a step are the same on any number of ranks and data workers, and resuming needs one
number: how many images were seen.

Axes: B batch (of one rank and one micro-batch).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.noise import permutation, uniforms

_SHUFFLE_STREAM = 0x5348  # keeps the shuffling apart from every other use of the same seed
_SHARD_STREAM, _WINDOW_STREAM = 0x5349, 0x534A


@dataclass(frozen=True)
class Groups:
    """Samples that lie together: sizes[g] consecutive ones form group (a shard) g; `window` groups are mixed."""

    sizes: tuple[int, ...]
    window: int


def global_index(position_B: np.ndarray, num_samples: int, seed: int, groups: Groups | None = None) -> np.ndarray:
    """The samples at positions of the endless training order."""
    epoch_B, offset_B = np.divmod(position_B, num_samples)
    index_B = np.empty_like(offset_B)
    for epoch in np.unique(epoch_B):
        chosen_B = epoch_B == epoch
        index_B[chosen_B] = _epoch_permutation(num_samples, seed, int(epoch), groups)[offset_B[chosen_B]]
    return index_B


def noise_key(position_B: np.ndarray, index_B: np.ndarray, num_samples: int) -> np.ndarray:
    """The key of a sample's augmentation noise: one number for (epoch, sample index)."""
    return position_B // num_samples * num_samples + index_B


class TrainOrder:
    """Endless batch sampler: iterating gives lists of (sample index, noise key), one list per micro-batch of this rank.

    With G = batch_size * world_size * accumulation, step s sees the positions start_image + [s*G, (s+1)*G); of these,
    micro-batch m of rank r holds the batch_size positions from m*world_size*batch_size + r*batch_size on.
    The noise key stands for (epoch, sample index): augmentation does not depend on where in the epoch a sample comes.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_image: int = 0,
        groups: Groups | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the training order needs at least one sample, the data set has none")
        if batch_size < 1 or accumulation < 1:
            raise ValueError(f"batch_size and accumulation must be at least 1, not {batch_size} and {accumulation}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), not {rank}")
        if start_image < 0:
            raise ValueError(f"start_image must not be negative, it is {start_image}")
        assert groups is None or sum(groups.sizes) == num_samples
        self.groups = groups
        self.num_samples, self.seed, self.start_image = num_samples, seed, start_image
        self.batch_size, self.rank, self.world_size, self.accumulation = batch_size, rank, world_size, accumulation

    def micro_batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(index_B, noise_key_B) of this rank's micro-batch `number`, counted from start_image."""
        # Steps are contiguous and so are the micro-batches in them: number * W * B equals s*G + m*W*B.
        first = self.start_image + (number * self.world_size + self.rank) * self.batch_size
        position_B = np.arange(first, first + self.batch_size, dtype=np.int64)
        index_B = global_index(position_B, self.num_samples, self.seed, self.groups)
        return index_B, noise_key(position_B, index_B, self.num_samples)

    def arrays(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The micro-batches as (index_B, noise_key_B) arrays, without end."""
        return map(self.micro_batch, itertools.count())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index_B, noise_key_B in self.arrays():
            yield list(zip(index_B.tolist(), noise_key_B.tolist()))


@functools.lru_cache(maxsize=4)  # a batch touches one epoch, or the border of two; training and a probe may share
def _epoch_permutation(num_samples: int, seed: int, epoch: int, groups: Groups | None) -> np.ndarray:
    if groups is None:
        return permutation(num_samples, _SHUFFLE_STREAM, seed, epoch)
    return _windowed_permutation(groups, seed, epoch)


def _windowed_permutation(groups: Groups, seed: int, epoch: int) -> np.ndarray:
    """Groups in shuffled order; a sample of the group at place p is drawn at a time uniform in [p, p + window).

    So about `window` groups are open at any moment, one more opens as another ends, and none is visited again.
    """
    place_G = np.argsort(permutation(len(groups.sizes), _SHARD_STREAM, seed, epoch))
    place_N = np.repeat(place_G, groups.sizes)
    draws_N = uniforms(1, _WINDOW_STREAM, seed, epoch, np.arange(len(place_N)))[:, 0]
    return np.argsort(place_N + groups.window * draws_N, kind="stable")
