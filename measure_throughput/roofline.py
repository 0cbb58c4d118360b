"""What the device can do, measured: one large matrix product and one large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

GEMM_SIZES = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}
ROUNDS = 5


class Roofline(NamedTuple):
    """flops: products, operations per second. bytes: copy, bytes read plus bytes written per second."""

    flops: float
    bytes: float


def measure_roofline(device: torch.device, dtype: torch.dtype, rounds: int = ROUNDS) -> Roofline:
    """Best of `rounds` for both terms, after one round that warms up."""
    size = GEMM_SIZES.get(device.type, 8192)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    gemm = best_seconds(lambda: torch.matmul(left, right, out=product), device, rounds)
    source = torch.zeros(COPY_BYTES.get(device.type, 2**30) // 8, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), device, rounds)
    return Roofline(2 * size**3 / gemm, 2 * source.numel() * 8 / copy)


def best_seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Shortest of `rounds` runs: the device's own limit, not its load."""
    run()
    return min(seconds(run, device) for _ in range(rounds))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run, the device's queue included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
