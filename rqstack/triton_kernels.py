"""Whether Triton kernels may run: the one place that decides it."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

SWITCH = "RQTRANSFORMER_TRITON"  # environment variable; '0' leaves every Triton kernel out


def use_triton(device: torch.device) -> bool:
    """Whether a Triton kernel may serve tensors of this device; each kernel then says what else it needs."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0" and _is_installed()


@functools.cache
def _is_installed() -> bool:
    """A CPU build of torch comes without Triton."""
    return importlib.util.find_spec("triton") is not None
