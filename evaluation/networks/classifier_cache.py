"""Cached classifiers: one safetensors file each, named by its key; a damaged or foreign file counts as absent."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.networks.weight_loading import check_weights
from runtime.atomic import new_mark, partial_of
from runtime.errors import one_line


def read_cached(path: Path, network: nn.Module, key: str) -> dict[str, Tensor] | None:
    """Weights for `network` from `path`; None when there is no sound file with this very key.

    What it says of itself, the names, types and shapes of its tensors, their values and their hash are looked at; a
    file that fails is passed over with a warning.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = _description(file.metadata())
            if described.get("key") != key:
                raise ValueError("it is of another classifier")
            _check_names(file, network)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        check_weights(network, tensors)
        if described.get("sha256") != _digest(tensors):
            raise ValueError("its weights are not those that were written")
    except (SafetensorError, OSError, ValueError) as error:
        warnings.warn(f"ignoring the cached classifier {path}: {one_line(error)}", stacklevel=2)
        return None
    return tensors


def _description(metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        found = json.loads((metadata or {}).get("classifier", "{}"))
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("its description is none")
    return found


def _check_names(file: Any, network: nn.Module) -> None:
    """Before anything is read: a file may promise any size."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    if {name: file.get_slice(name).get_shape() for name in file.keys()} != shapes:
        raise ValueError("its tensors are those of another network")


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_cached(path: Path, network: nn.Module, key: str, settings: dict[str, object]) -> None:
    """Writes the weights under a temporary name and renames it: a reader sees a complete file or none.

    Where the disk refuses, a warning says so: what was trained is there without the file.
    """
    temporary = partial_of(path, new_mark())
    # One entry of metadata: several would be written in an arbitrary order, and equal classifiers as different files.
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    description = {"key": key, "settings": settings, "sha256": _digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"classifier": json.dumps(description, sort_keys=True)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the classifier is not kept: {one_line(error)}", stacklevel=2)
    finally:
        with suppress(OSError):
            temporary.unlink()
