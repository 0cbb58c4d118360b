"""Whether Triton kernels may run: the one place that decides it.

Before a kernel serves anybody it shows once per process and device, on a few fixed numbers, that it gives what its
plain form gives. A kernel that fails to build, or that gives something else, is left out with one warning.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SWITCH = "RQTRANSFORMER_TRITON"  # environment variable; '0' leaves every Triton kernel out
OLDEST_CAPABILITY = (8, 0)  # what the kernels are compiled for in the tests
Trial = Callable[[torch.device], bool]
_verdicts: dict[tuple[str, str, torch.device], bool] = {}


def use_triton(device: torch.device) -> bool:
    """Whether Triton kernels are to be had for tensors of this device."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0" and _can_build() and _is_known(device)


def use_kernel(trial: Trial, device: torch.device) -> bool:
    """Whether a kernel may serve tensors of this device; the kernel then says what else it needs.

    Args:
        trial: runs kernel and plain form on the device and says whether they agree. It waits for the device, so the
            first call of a process must not be part of a recording: until then the answer to a recording is no.
        device: of the tensors.
    """
    return use_triton(device) and _stands_the_trial(trial, device)


def trial_numbers(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, pace: float = 0.73) -> Tensor:
    """Numbers in [-1, 1] for a trial, the same ones for the same arguments; no random state is touched."""
    count = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return (count * pace + (count * pace).square() / 91).sin().view(shape).to(device, dtype)


def alike(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the largest difference is within the tolerance, relative to the largest expected number."""
    difference = (found.double() - expected.double()).abs().max()
    return bool(difference <= tolerance * expected.double().abs().max())


def _stands_the_trial(trial: Trial, device: torch.device) -> bool:
    key = (trial.__module__, trial.__qualname__, device)
    if key not in _verdicts:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        reason = _objection(trial, device)
        if reason is not None:
            plainly = f"its plain form is used: {reason}; {SWITCH}=0 leaves all Triton kernels out"
            warnings.warn(f"{trial.__name__}: a Triton kernel is not used on {device}, {plainly}", stacklevel=3)
        _verdicts[key] = reason is None
    return _verdicts[key]


def _objection(trial: Trial, device: torch.device) -> str | None:
    """Why a kernel is not to be used. Whatever a compiler or a driver raises is a reason, none of them an end."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            return None if trial(device) else "its numbers differ"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


@functools.cache
def _can_build() -> bool:
    """Triton is not part of a CPU build of torch, and compiles the start of each kernel against Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return importlib.util.find_spec("triton") is not None and compiler is not None and headers.exists()


@functools.cache
def _is_known(device: torch.device) -> bool:
    if torch.version.hip is not None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY
