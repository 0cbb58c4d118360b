"""Snapshots: a trained model to use, not to resume: weights, the resolved config and what is known about them.

`snapshots/step_00001000/` holds `model.safetensors`, `model_ema.safetensors` (where averaged weights are kept),
`config.yaml`, `metadata.json`, the tokenizer of captions where there is one, and the completion mark.
`rqvae.load_rqvae` and `rqtransformer.load_rqtransformer` read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.atomic import atomic_directory, is_complete, sha256_of_file
from runtime.config import config_to_yaml
from runtime.errors import UserError
from training.checkpoints.checkpoint import complete_steps, prune_steps
from training.checkpoints.checkpoint_directories import read_json
from training.checkpoints.state_tree import plain_copy
from training.optimization.parallel import unwrap

SNAPSHOTS = "snapshots"
MODEL_FILE = "model.safetensors"
EMA_FILE = "model_ema.safetensors"
CONFIG_FILE = "config.yaml"
METADATA_FILE = "metadata.json"


def snapshot_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model's state dict: on the CPU, contiguous, none sharing memory with another."""
    state = unwrap(model).state_dict()
    return {name: plain_copy(tensor) for name, tensor in state.items()}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of everything in a model's state dict, whatever file or device it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(snapshot_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_snapshot(
    directory: str | Path,
    model_tensors: Mapping[str, Tensor],
    config: Any,
    metadata: Mapping[str, Any],
    ema_tensors: Mapping[str, Tensor] | None = None,
    *,
    keep_last: int | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a snapshot directory, for example `run_dir/snapshots/step_00001000`, and return it.

    Args:
        model_tensors: state-dict names -> tensors.
        config: the resolved experiment config: a dataclass instance, a DictConfig or a mapping.
        metadata: what JSON can hold (step, images seen, scores, ...); `sha256` of the weight files is added.
        ema_tensors: averaged weights under the same names.
        keep_last: complete snapshots that stay beside each other, this one (always) and the newest others; None keeps
            all.
        extra_files: file name -> text of what else belongs to the model: the tokenizer of its captions.

    Raises:
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    with atomic_directory(directory) as partial:
        weights = {MODEL_FILE: model_tensors} | ({} if ema_tensors is None else {EMA_FILE: ema_tensors})
        for name, tensors in weights.items():
            save_file({key: plain_copy(tensor) for key, tensor in tensors.items()}, partial / name)
        hashes = {name: sha256_of_file(partial / name) for name in weights}
        for name, text in (extra_files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
        text = json.dumps({**metadata, "sha256": hashes}, indent=2)
        (partial / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
    if keep_last is not None:
        prune_steps(directory, keep_last)
    return directory


def read_metadata(path: str | Path) -> dict[str, Any]:
    """A snapshot's `metadata.json`; its `sha256` entry identifies the weights in result lines."""
    file = Path(path) / METADATA_FILE
    if not is_complete(Path(path)):
        raise FileNotFoundError(f"{path} is not a complete snapshot")
    return read_json(file)


def find_latest_snapshot(path: str | Path) -> Path | None:
    """The newest complete snapshot of a run directory or its `snapshots` directory, or `path` if it is one."""
    path = Path(path)
    if (path / MODEL_FILE).is_file() and is_complete(path):
        return path
    return next(iter(complete_snapshots(path / SNAPSHOTS if (path / SNAPSHOTS).is_dir() else path)), None)


def resolve_checkpoint(path: str | Path) -> Path:
    """A run directory stands for its newest snapshot; a snapshot or a published checkpoint is what it is.

    Raises:
        UserError: nothing is there, or a directory that is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    snapshot = find_latest_snapshot(path)
    if snapshot is None and path.is_dir() and not any(path.glob("*.pt")):
        raise UserError(f"{path} is neither a run with a snapshot, nor a snapshot, nor a folder with a .pt file")
    return snapshot or path


def complete_snapshots(parent: Path) -> list[Path]:
    """All complete snapshots in a directory, newest first."""
    return complete_steps(parent)
