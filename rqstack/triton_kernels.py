"""Whether Triton kernels may run: the one place that decides it."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

SWITCH = "RQTRANSFORMER_TRITON"  # environment variable; '0' leaves every Triton kernel out
OLDEST_CAPABILITY = (8, 0)  # what the kernels are compiled for in the tests


def use_triton(device: torch.device) -> bool:
    """Whether a Triton kernel may serve tensors of this device; each kernel then says what else it needs."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0" and _can_build() and _is_known(device)


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
