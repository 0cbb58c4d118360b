"""The memory through which data workers hand batches over: whether there is enough, and what to say when there is not.

On Linux it is a disk in memory, `/dev/shm`; containers are given 64 MB of it unless told otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import ImageDataset
from data.errors import DataError
from runtime.errors import UserError, one_line

PLACE = Path("/dev/shm")
PREFETCH = 4  # batches a worker prepares ahead
_REMEDY = (
    "give it more (docker run --shm-size=2g, mount -o remount,size=2g), or take fewer experiment.num_workers "
    "or a smaller experiment.batch_size"
)


class OutOfSharedMemory(DataError):
    """A data worker found no room for a batch."""


@dataclass(frozen=True)
class Reading:
    """A loader that will run: its batches and the workers that it gets."""

    dataset: ImageDataset
    batch_size: int
    num_workers: int

    def num_bytes(self) -> int:
        """The most that its batches take at one time: those ahead, and the one that is taken out."""
        if not self.num_workers or self.dataset.in_memory:
            return 0
        return (PREFETCH * self.num_workers + 1) * self.batch_size * _bytes_of_one(self.dataset)


def check_room(readings: Sequence[Reading], processes: int) -> None:
    """Before a run starts.

    Args:
        readings: the loaders of one process that are open at the same time.
        processes: that share the memory of this host.

    Raises:
        UserError: there is less shared memory than their batches will need.
    """
    needed = processes * sum(reading.num_bytes() for reading in readings)
    if not needed or not PLACE.is_dir():
        return
    if shutil.disk_usage(PLACE).free < needed:
        workers = " + ".join(str(reading.num_workers) for reading in readings if reading.num_bytes())
        raise UserError(
            f"{_state()}; {processes} processes with {workers} data workers need {needed / 1e6:,.1f} MB: {_REMEDY}"
        )


def share(batch: Any) -> Any:
    """Puts the tensors of a batch, a dict of them, where another process can read them.

    A data worker does this itself, because the thread that would otherwise do it loses a batch without a word.

    Raises:
        OutOfSharedMemory: there is no room.
    """
    try:
        for tensor in batch.values():
            tensor.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error) and "shm" not in str(error):
            raise
        num_bytes = sum(tensor.nbytes for tensor in batch.values())
        raise OutOfSharedMemory(
            f"{_state()}, too little for a batch of {num_bytes / 1e6:,.1f} MB: {_REMEDY}"
        ) from error
    return batch


def explained(error: BaseException) -> str:
    """One line on a batch that a data worker could not hand over."""
    line = one_line(error)
    short = "shm" in line or "shared memory" in line
    return f"{_state()}: {line}; {_REMEDY}" if short else line


def _state() -> str:
    if not PLACE.is_dir():
        return "shared memory is full"
    usage = shutil.disk_usage(PLACE)
    return f"shared memory ({PLACE}) has {usage.total / 1e6:,.1f} MB, {usage.free / 1e6:,.1f} MB free"


def _bytes_of_one(dataset: ImageDataset) -> int:
    return sum(tensor.nbytes for tensor in dataset.fetch(np.array([0]), None).values())


def processes_here(world_size: int) -> int:
    """The processes of the run on this host, as the launcher says; all of them where it does not."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdecimal() else world_size
