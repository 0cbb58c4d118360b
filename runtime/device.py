"""How PyTorch uses the device that a process was given."""

from __future__ import annotations

import torch

from runtime.allocator import keep_freed_memory
from runtime.distributed import DistEnv


def use_device(env: DistEnv) -> None:
    """Switches of PyTorch, and of the allocator below it, that all training and extraction share."""
    if env.device.type == "cpu":
        keep_freed_memory()
    if env.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # the newer of PyTorch's two TF32 switches: the quantizer uses it too, and they must not be mixed
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # torch adds it when imported
