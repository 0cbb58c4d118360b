"""Batches from the host to where they are trained on; on a GPU while the step before is still running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from data.dataset import to_float_batch

Batch = dict[str, Tensor]
Started = TypeVar("Started")


def place(raw: Iterable[Batch], pin_memory: bool, device: torch.device | str | None) -> Iterator[Batch]:
    """Stored batches as float batches on `device`; None leaves them on the host, page-locked with `pin_memory`.

    On a GPU, copying and conversion of a batch run on a stream of their own, one batch ahead.
    """
    if device is not None and torch.device(device).type == "cuda":
        side = SideStream(torch.device(device))
        return one_ahead(raw, side.start, side.finish)
    return (_on_host(batch, pin_memory, device) for batch in raw)


def one_ahead(
    raw: Iterable[Batch], start: Callable[[Batch], Started], finish: Callable[[Started], Batch]
) -> Iterator[Batch]:
    """Starts with every batch before the one in front of it is finished and given out."""
    pending: list[Started] = []
    for batch in raw:
        pending.append(start(batch))
        if len(pending) > 1:
            yield finish(pending.pop(0))
    for started in pending:
        yield finish(started)


class SideStream:
    """Copies batches to a GPU beside the computation, which waits for a batch only when it is to be used."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Begins to copy; a copy from page-locked memory does not keep the host waiting."""
        with torch.cuda.stream(self.stream):
            pinned = {name: value if value.is_pinned() else value.pin_memory() for name, value in batch.items()}
            moved = {name: value.to(self.device, non_blocking=True) for name, value in pinned.items()}
            return to_float_batch(moved), self.stream.record_event()

    def finish(self, started: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The batch, for the stream that is computed on; its memory is not given away before that is done with it."""
        batch, copied = started
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for value in batch.values():
            value.record_stream(current)
        return batch


def _on_host(batch: Batch, pin_memory: bool, device: torch.device | str | None) -> Batch:
    batch = to_float_batch(batch)
    if device is not None:
        return {name: value.to(device) for name, value in batch.items()}
    return {name: value.pin_memory() for name, value in batch.items()} if pin_memory else batch
