"""Cached classifiers: one safetensors file each, named by its key; a damaged or foreign file counts as absent."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def read_cached(path: Path, network: nn.Module, key: str) -> dict[str, Tensor] | None:
    """Weights for `network` from `path`; None when there is no sound file with this very key."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            stored_key = json.loads((file.metadata() or {}).get("classifier", "{}")).get("key")
    except (SafetensorError, OSError) as error:
        warnings.warn(f"ignoring the cached classifier {path}: {str(error).splitlines()[0]}", stacklevel=2)
        return None
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    sound = stored_key == key and {name: tensor.shape for name, tensor in tensors.items()} == shapes
    return tensors if sound else None


def write_cached(path: Path, network: nn.Module, key: str, settings: dict[str, object]) -> None:
    """Writes the weights under a temporary name and renames it: a reader sees a complete file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        # One entry: several would be written in an arbitrary order, and equal classifiers as different files.
        metadata = {"classifier": json.dumps({"key": key, "settings": settings}, sort_keys=True)}
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
