"""Times, differences and memory, the same for every item."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from measure_throughput.roofline import seconds, synchronize
from rqstack.triton_kernels import SWITCH


def median_ms(run: Callable[[], object], device: torch.device, rounds: int = 10, warm_up: int = 3) -> float:
    """Median milliseconds of a call, the device's queue included."""
    for _ in range(warm_up):
        run()
    synchronize(device)
    return 1e3 * statistics.median(seconds(run, device) for _ in range(rounds))


def relative(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64 on the CPU."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def share_equal(first: Tensor, second: Tensor) -> float:
    """Share of equal entries."""
    return float((first.cpu() == second.cpu()).double().mean())


def exact_products() -> None:
    """fp32 products without TF32 in this process: what is compared with a CPU must not be rounded to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False  # the older switches set the newer ones: `runtime.device`
    torch.backends.cudnn.allow_tf32 = False


def without_kernels() -> AbstractContextManager[object]:
    """No Triton kernel runs inside."""
    return mock.patch.dict(os.environ, {SWITCH: "0"})


def peak_gib(device: torch.device) -> float | None:
    """Most memory that tensors held on a GPU since the last call, 2^30 bytes."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak / 2**30, 2)
