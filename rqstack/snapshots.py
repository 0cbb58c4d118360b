"""What a snapshot is made of: the names of its files, and a model's tensors as they are kept in it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

MODEL_FILE = "model.safetensors"
EMA_FILE = "model_ema.safetensors"
CONFIG_FILE = "config.yaml"
METADATA_FILE = "metadata.json"


def plain_copy(tensor: Tensor) -> Tensor:
    """The tensor's values in memory of their own: dense, on the CPU, shared with nobody."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor.detach())


def snapshot_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model's state dict: on the CPU, contiguous, none sharing memory with another.

    The names are the module's own: give the model itself, not what data parallelism or compilation put around it.
    """
    return {name: plain_copy(tensor) for name, tensor in model.state_dict().items()}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of everything in a model's state dict, whatever file or device it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(snapshot_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
