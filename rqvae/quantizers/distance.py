"""Nearest code vectors without an N x K matrix.

Legend: N vectors, E code-vector size, K codebook size.

All searches run over chunks of rows whose K distances fit a byte budget, in fp32 and full matmul precision. The squared
norm of x is left out: it is the same for every code and changes neither the minimum nor a softmax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

CPU_CHUNK_BYTES = 8 * 2**20  # larger temporaries pay page faults at every call
DEVICE_CHUNK_BYTES = 256 * 2**20
MIN_CHUNK_ROWS = 16


@contextlib.contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Switch TF32 matrix products off inside: their 10-bit mantissa changes which code is nearest."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision if device.type == "cuda" else "ieee"
    if before in ("ieee", "none"):
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def rows_per_chunk(num_codes: int, device: torch.device) -> int:
    """Rows whose distances to `num_codes` codes fit the byte budget of the device."""
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else DEVICE_CHUNK_BYTES
    return max(MIN_CHUNK_ROWS, budget // (4 * num_codes))


def _search(x_NE: torch.Tensor, weight_KE: torch.Tensor, pick: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply `pick` ((n, K) squared distances up to a constant per row -> (n,) codes) chunk by chunk."""
    x_NE, weight_KE = x_NE.float(), weight_KE.float()
    norm_K = weight_KE.square().sum(1)
    codes_N = torch.empty(len(x_NE), dtype=torch.int64, device=x_NE.device)
    chunk = min(rows_per_chunk(len(weight_KE), x_NE.device), max(1, len(x_NE)))
    scratch = x_NE.new_empty((chunk, len(weight_KE)))
    with full_precision_matmul(x_NE.device):
        for start in range(0, len(x_NE), chunk):
            part = x_NE[start : start + chunk]
            distance = torch.addmm(norm_K, part, weight_KE.T, alpha=-2, out=scratch[: len(part)])
            codes_N[start : start + chunk] = pick(distance)
    return codes_N


@torch.no_grad()
def nearest_codes(x_NE: torch.Tensor, weight_KE: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code vector of every row (int64, (N,)); the lowest index among equals. # Eq. 1"""
    return _search(x_NE, weight_KE, lambda distance: distance.argmin(1))


@torch.no_grad()
def sampled_codes(
    x_NE: torch.Tensor, weight_KE: torch.Tensor, temp: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """One draw per row from softmax(-squared distance / temp), without keeping the probabilities. # Eq. 12

    Gumbel-max: an argmax over perturbed scores needs no normalisation and no host synchronisation.
    """
    check_temperature(temp)

    def pick(distance: torch.Tensor) -> torch.Tensor:
        log_exponential = torch.empty_like(distance).exponential_(generator=generator).log_()
        return log_exponential.add_(distance, alpha=1.0 / temp).argmin(1)

    return _search(x_NE, weight_KE, pick)


@torch.no_grad()
def soft_code_probs(x_NE: torch.Tensor, weight_KE: torch.Tensor, temp: float) -> torch.Tensor:
    """softmax over k of -|x - e_k|^2 / temp, (N, K) fp32. # Eq. 12. The result itself is N x K: for small inputs."""
    check_temperature(temp)
    x_NE, weight_KE = x_NE.float(), weight_KE.float()
    with full_precision_matmul(x_NE.device):
        distance_NK = torch.addmm(weight_KE.square().sum(1), x_NE, weight_KE.T, alpha=-2)
    return distance_NK.mul_(-1.0 / temp).softmax(1)


def check_temperature(temp: float) -> None:
    """A soft code needs a positive temperature."""
    if not temp > 0:
        raise ValueError(f"temp must be positive, got {temp}")
