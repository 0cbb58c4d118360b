"""Data-parallel wrapping: one copy of the model per process, gradients averaged."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from runtime.distributed import DistEnv, broadcast_

# Whether every forward broadcasts rank 0's buffers; renamed in torch 2.15, which warns at the older name.
_DDP_PARAMETERS = signature(DistributedDataParallel).parameters
_FORWARD_BUFFER_FLAG = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_PARAMETERS else "broadcast_buffers"


def wrap(
    model: nn.Module, env: DistEnv, *, static_graph: bool = False, find_unused_parameters: bool = False
) -> nn.Module:
    """`model` under DistributedDataParallel; the model itself in a single process or without trainable parameters.

    Every rank starts from rank 0's parameters and buffers. Buffers are not broadcast again: codebooks are kept equal
    by their own all-reduced updates, and batch statistics belong to a rank.

    Args:
        static_graph: the same parameters get gradients in every step.
        find_unused_parameters: some parameters may get none; costs a walk over the graph per step.
    """
    if not env.is_distributed or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    with torch.no_grad():
        for buffer in model.buffers():
            broadcast_(buffer)
    return DistributedDataParallel(
        model,
        device_ids=[env.device.index] if env.device.type == "cuda" else None,
        **{_FORWARD_BUFFER_FLAG: False},
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        find_unused_parameters=find_unused_parameters,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, under whatever DistributedDataParallel and torch.compile put around it."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def no_sync(model: nn.Module, enabled: bool = True) -> AbstractContextManager[None]:
    """While `enabled`, backward adds to the gradients without averaging them over ranks (accumulation)."""
    if enabled and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
