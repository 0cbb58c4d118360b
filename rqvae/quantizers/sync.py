"""The collectives of the quantizer library, and the only ones `rqvae` uses.

Without a process group every function behaves as if one process were alone, so nothing above needs to know.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def all_reduce_sum(*tensors: torch.Tensor) -> None:
    """Add each tensor up over all processes, in place. Does nothing in a single process."""
    if is_distributed():
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


def all_gather_rows(row: torch.Tensor) -> torch.Tensor:
    """Stack one equally shaped tensor per process into (world size, ...), in rank order.

    Written as a sum into zeros: it works for every backend and needs no list of output tensors.
    """
    gathered = row.new_zeros((world_size(), *row.shape))
    gathered[rank()] = row
    all_reduce_sum(gathered)
    return gathered
