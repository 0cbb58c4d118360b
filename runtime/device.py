"""How PyTorch uses the device that a process was given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from runtime.allocator import keep_freed_memory
from runtime.distributed import DistEnv


def use_device(env: DistEnv, deterministic: bool = False) -> None:
    """Switches of PyTorch, and of the allocator below it, that all training and extraction share.

    Args:
        deterministic: on a GPU, take algorithms that give the same bits every time, at a price in speed, and not those
            that are measured to be the fastest at the moment. Call before the process has used the GPU.
    """
    if env.device.type == "cpu":
        keep_freed_memory()
    if env.device.type == "cuda":
        # PyTorch's older switches: they set the newer ones too, while reading an older one fails after a newer one was
        # set, and code outside of ours reads them
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            _take_deterministic_algorithms()


def _take_deterministic_algorithms() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a process first uses it
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    # an operation that has no such algorithm warns: whether there is one depends on the torch release
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def ieee_fp32(device: torch.device) -> Iterator[None]:
    """fp32 products and convolutions on a GPU with all their bits inside, whatever the process is set to.

    TF32 has a mantissa of 10 bits, and PyTorch allows it in convolutions unless told otherwise.
    """
    if device.type != "cuda":
        yield
        return
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # torch adds conv
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
