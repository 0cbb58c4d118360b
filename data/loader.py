"""From data set to batches: endless and ordered for training, exact for evaluation.

A batch is a dict of stacked tensors: `image` float32 (B, 3, H, W) in [-1, 1], `label` and `index` int64 (B,), and
`cond` int64 (B, L) where images have captions. Images travel as uint8 between processes and to the device, and
become float32 there; cached latents (data/shards/cached_latents.py) travel as they are stored. Axes: B batch.
"""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.dataset import ImageDataset
from data.order import TrainOrder
from data.placing import place
from data.shared_memory import PREFETCH, explained, share
from runtime.errors import say
from runtime.processes.system import usable_cores

Batch = dict[str, Tensor]


class TrainLoader:
    """Endless batches of this rank in the order of `TrainOrder`, one per micro-batch; the order is a pure function of
    (seed, start_image), whatever the number of workers. Data sets held in memory need none and get none.

    `pin_memory` gives page-locked batches for asynchronous copies; with `device` the batches come on that device.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_image: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.dataset = dataset
        self.order = TrainOrder(
            len(dataset), seed, batch_size, rank, world_size, accumulation, start_image, dataset.groups
        )
        self.num_workers, self.pin_memory, self.device = num_workers, pin_memory, device

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self.dataset, self.order, self.num_workers, self.pin_memory, self.device)


class EvalLoader:
    """The whole split without augmentation, or `limit` images spread evenly over it, each exactly once over all ranks:
    this rank's are number rank, rank + world_size, ...; the last batch may be smaller. `num_samples` counts the images
    of all ranks; len() is this rank's number of batches.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        limit: int | None = None,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), not {rank}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self.dataset = dataset
        self.num_samples = len(dataset) if limit is None else min(limit, len(dataset))
        self.order = _EvalOrder(_spread(self.num_samples, len(dataset))[rank::world_size], batch_size)
        self.num_workers, self.pin_memory, self.device = num_workers, pin_memory, device

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self.dataset, self.order, self.num_workers, self.pin_memory, self.device)


def stored_batches(
    dataset: ImageDataset, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """This rank's images of a whole split as they are stored, uint8 and without augmentation, on the host."""
    index_N = np.arange(rank, len(dataset), world_size)
    return iter(_stored(dataset, _EvalOrder(index_N, batch_size), num_workers, pin_memory=False))


def listed_batches(
    dataset: ImageDataset,
    index_N: np.ndarray,
    noise_key_N: np.ndarray | None,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """Batches of given images in the given order, augmented as their noise keys say; the last one may be smaller."""
    return _batches(dataset, _ListedOrder(index_N, noise_key_N, batch_size), num_workers, False, device)


class _ListedOrder:
    def __init__(self, index_N: np.ndarray, noise_key_N: np.ndarray | None, batch_size: int) -> None:
        self.index_N, self.noise_key_N, self.batch_size = index_N, noise_key_N, batch_size

    def arrays(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for start in range(0, len(self.index_N), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.index_N[part], None if self.noise_key_N is None else self.noise_key_N[part]

    def __iter__(self) -> Iterator[list[int] | list[tuple[int, int]]]:
        for index_B, noise_key_B in self.arrays():
            yield index_B.tolist() if noise_key_B is None else list(zip(index_B.tolist(), noise_key_B.tolist()))


class _EvalOrder(_ListedOrder):
    def __init__(self, index_N: np.ndarray, batch_size: int) -> None:
        super().__init__(index_N, None, batch_size)

    def __len__(self) -> int:
        return -(-len(self.index_N) // self.batch_size)


def _spread(count: int, total: int) -> np.ndarray:
    """`count` of range(total), evenly spaced: data sets are sorted by class, so the first ones would be few classes."""
    return np.arange(count, dtype=np.int64) * total // count


def _batches(
    dataset: ImageDataset,
    order: TrainOrder | _ListedOrder,
    num_workers: int,
    pin_memory: bool,
    device: torch.device | str | None,
) -> Iterator[Batch]:
    pin_memory = (pin_memory or _is_cuda(device)) and torch.cuda.is_available()
    return place(_stored(dataset, order, num_workers, pin_memory and device is not None), pin_memory, device)


def _stored(
    dataset: ImageDataset, order: TrainOrder | _ListedOrder, num_workers: int, pin_memory: bool
) -> Iterable[Batch]:
    if worker_count(dataset, num_workers) == 0:
        return (dataset.fetch(*arrays) for arrays in order.arrays())
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=worker_count(dataset, num_workers),
        collate_fn=share,
        worker_init_fn=_start_worker,
        prefetch_factor=PREFETCH,
        pin_memory=pin_memory,  # by a thread of its own, while still uint8
        generator=torch.Generator(),  # its own: making the iterator must not advance the global generator
    )


def _is_cuda(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def worker_count(dataset: ImageDataset, num_workers: int) -> int:
    """The data workers that a loader starts where it was given so many: more than cores get in each other's way."""
    return 0 if dataset.in_memory else min(num_workers, usable_cores())


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal; the main one ends its workers when it has saved
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # a batch that cannot be sent would be dropped by a thread, and waited for without an end
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]  # its hook


def _end(error: Exception, batch: Any) -> None:
    """Of a worker that cannot hand a batch over: the loader notices that it has died."""
    say(f"error: a data worker ends, a batch cannot be handed over: {explained(error)}", to_stderr=True)
    os._exit(1)
