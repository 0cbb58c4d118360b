"""How much memory a measurement took, and whether it failed for lack of it."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.processes.system import peak_memory_bytes

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # what Linux's clear_refs calls the peak of the resident memory
# allocators of the CPU (Linux, Windows), of CUDA, and of the libraries on it
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that there was not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in SIGNS)


def reset_peak(device: torch.device) -> None:
    """Starts a new measurement; without effect on a CPU where the system does not offer it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (PROCESS / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        pass


def peak_mb(device: torch.device) -> float | None:
    """Most memory since `reset_peak`, 10^6 bytes: tensors on a GPU; the whole process, Python included, on a CPU.

    Outside Linux the peak of a process is that of its whole life, rows measured earlier included. None: not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = (PROCESS / "status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        peak = peak_memory_bytes()
        return None if peak is None else peak / 1e6
