"""The collectives of the libraries: nothing else in them calls one.

Without a process group every function behaves as if one process were alone, so nothing above needs to know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone_depth = 0


def is_distributed() -> bool:
    """Whether several processes train together."""
    return _alone_depth == 0 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works as if there were no other: for codebooks that are kept apart on purpose."""
    global _alone_depth
    _alone_depth += 1
    try:
        yield
    finally:
        _alone_depth -= 1


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def all_reduce_sum(*tensors: Tensor) -> None:
    """Add each tensor up over all processes, in place. Does nothing in a single process."""
    if is_distributed():
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


def all_gather_rows(row: Tensor) -> Tensor:
    """Stack one equally shaped tensor per process into (world size, ...), in rank order.

    Written as a sum into zeros: it works for every backend and needs no list of output tensors.
    """
    gathered = row.new_zeros((world_size(), *row.shape))
    gathered[rank()] = row
    all_reduce_sum(gathered)
    return gathered


class _AllReduceSum(torch.autograd.Function):
    """Forward and backward add up over all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        all_reduce_sum(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        all_reduce_sum(grad)
        return grad


def differentiable_all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes, with the gradient of the sum of the losses of all processes.

    A loss every process computes from the sum has that gradient once per process, so gradients that are averaged over
    processes, as data-parallel training does, are those of one process with everything. All must run the backward pass.
    """
    total: Tensor = _AllReduceSum.apply(tensor) if is_distributed() else tensor
    return total


def from_first_rank(value: int, device: torch.device | None = None) -> int:
    """The number that process 0 passes, on all processes. Between several the host waits for `device`."""
    if not is_distributed():
        return value
    shared = torch.tensor(value if rank() == 0 else 0, device=device)
    all_reduce_sum(shared)
    return int(shared)
