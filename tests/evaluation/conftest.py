"""Fixtures of the evaluation tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch


class _ThreadSum:
    """In-place sum of a tensor over threads that stand for ranks."""

    def __init__(self, world_size: int):
        self.slots: list[torch.Tensor | None] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=30)

    def of_rank(self, rank: int) -> Callable[[torch.Tensor], None]:
        def reduce(tensor: torch.Tensor) -> None:
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            tensor.copy_(sum(self.slots[1:], self.slots[0]))
            self.barrier.wait()

        return reduce


@pytest.fixture
def run_ranks() -> Callable:
    """`run_ranks(world_size, function)`: results of `function(rank, reduce)` run by all ranks at once."""

    def run(world_size: int, function: Callable) -> list:
        ranks = _ThreadSum(world_size)
        with ThreadPoolExecutor(world_size) as pool:
            futures = [pool.submit(function, rank, ranks.of_rank(rank)) for rank in range(world_size)]
            return [future.result() for future in futures]

    return run
