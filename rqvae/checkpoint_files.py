"""Checkpoints on disk, our snapshots and the published format: reading them, and filling a model of a given class.

snapshot   a directory with model.safetensors (and model_ema.safetensors), config.yaml, metadata.json and the mark
           COMPLETE, without which it does not exist for a reader
published  a .pt file beside its config.yaml: `state_dict`, possibly `state_dict_ema` and `discriminator`, with one
           all-zero padding row after the last code vector and a shared codebook repeated for every depth
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from yaml import YAMLError

from rqvae.bottleneck import build_quantizer
from rqvae.config import RQVAEConfig

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=nn.Module)
CODEBOOK_PREFIX = "quantizer.codebooks."
SNAPSHOT_FILES = {"state_dict": "model.safetensors", "state_dict_ema": "model_ema.safetensors"}


def load_checkpoint(
    model_class: type[Model], path: str | Path, ema: bool = False, device: str | torch.device = "cpu"
) -> Model:
    """A model in eval mode; arguments and errors are those of `rqvae.load_rqvae`.

    model_class: built from an `RQVAEConfig`. The snapshot's metadata is put on the model as `metadata`.
    """
    checkpoint = read_checkpoint(path)
    key = "state_dict_ema" if ema else "state_dict"
    if key not in checkpoint:
        raise ValueError(f"{path} has no {key} ({'averaged' if ema else 'raw'} weights)")
    try:
        arch = checkpoint["config"]["arch"]
        if arch.get("type", "rq-vae") != "rq-vae":
            raise ValueError(f"not a stage-1 checkpoint: arch.type is {arch['type']!r}, not 'rq-vae'")
        config = RQVAEConfig.from_mapping(arch)
        tensors = checkpoint[key]
        if not checkpoint["is_snapshot"]:
            tensors = state_dict_from_published(tensors, config)
        model = _build(model_class, config, tensors).to(device).eval()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model.metadata = checkpoint.get("metadata", {})
    return model


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a snapshot directory or a published checkpoint without interpreting it.

    Returns its `state_dict`, `state_dict_ema` and `discriminator` (those it has; tensors as stored), `config` (a plain
    dict with an `arch` section) and `is_snapshot`; a snapshot adds `metadata`.
    """
    path = Path(path)
    if (path / SNAPSHOT_FILES["state_dict"]).exists() or (path / "COMPLETE").exists():
        return _read_snapshot(path)
    file = path / "model.pt" if path.is_dir() else path
    if not file.is_file():
        expected = "a snapshot directory, a .pt file beside config.yaml, or a directory with model.pt"
        raise FileNotFoundError(f"no checkpoint at {path}: expected {expected}")
    return {**_read_published(file), "config": _read_config(file.parent / "config.yaml"), "is_snapshot": False}


def _read_snapshot(path: Path) -> dict[str, Any]:
    if not (path / "COMPLETE").exists():
        raise ValueError(f"{path} is an incomplete snapshot: it has no completion mark COMPLETE")
    found: dict[str, Any] = {"config": _read_config(path / "config.yaml"), "is_snapshot": True}
    for key, name in SNAPSHOT_FILES.items():
        if (path / name).exists():
            try:
                found[key] = load_file(path / name)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path / name} is not readable: {_first_line(error)}") from None
    found["metadata"] = _read_metadata(path / "metadata.json")
    return found


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is not readable: {_first_line(error)}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} is not readable: it holds a {type(metadata).__name__}")
    return metadata


def _read_published(file: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} is not readable as a checkpoint: {_first_line(error)}") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise ValueError(f"{file} is not a checkpoint: it has no 'state_dict'")
    return loaded


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no config beside the checkpoint: {file} does not exist")
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a readable config: {_first_line(error)}") from None
    if not isinstance(config, dict) or not isinstance(config.get("arch"), dict):
        raise ValueError(f"{file} has no 'arch' section")
    return config


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _build(model_class: type[Model], config: RQVAEConfig, tensors: Tensors) -> Model:
    """Fill a model with tensors; it is made without initial values, so no random numbers are drawn."""
    with torch.device("meta"):
        model = model_class(config)
    expected = model.state_dict()
    problems = _list("missing", [k for k in expected if k not in tensors])
    problems += _list("unexpected", [k for k in tensors if k not in expected])
    wrong = [k for k in expected if k in tensors and tensors[k].shape != expected[k].shape]
    problems += _list("wrong shape", [f"{k} {list(tensors[k].shape)} not {list(expected[k].shape)}" for k in wrong])
    if problems:
        raise ValueError(f"weights do not fit the config; {'; '.join(problems)}")
    model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    _fill_constants(model)
    return model


def _fill_constants(model: nn.Module) -> None:
    """Give the quantizer's buffers that are not saved (grids of values, counters) the values they start with."""
    saved = model.quantizer.state_dict().keys()
    with torch.random.fork_rng(devices=[]):
        start = dict(build_quantizer(model.config).named_buffers())
    for name, buffer in model.quantizer.named_buffers():
        if name not in saved:
            buffer.copy_(start[name])


def _list(label: str, items: list[str], shown: int = 8) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return [f"{label}: {', '.join(items[:shown])}{more}"]


def state_dict_from_published(published: Tensors, config: RQVAEConfig) -> Tensors:
    """Published names and layout -> ours: no `module.` prefix, no padding rows, a shared codebook once.

    Raises ValueError when the copies of a shared codebook differ.
    """
    tensors: Tensors = {}
    for key, tensor in published.items():
        key = key.removeprefix("module.")
        if not key.startswith(CODEBOOK_PREFIX):
            tensors[key] = tensor
            continue
        depth, name = codebook_key(key)
        if name == "weight":
            tensor = tensor[:-1]
        if config.shared_codebook:
            depth = 0
        ours = f"{CODEBOOK_PREFIX}{depth}.{name}"
        if ours in tensors and not torch.equal(tensors[ours], tensor):
            raise ValueError(f"shared_codebook is true, but {key} differs between depths")
        tensors[ours] = tensor
        tensors[f"{CODEBOOK_PREFIX}{depth}.num_updates"] = torch.zeros((), dtype=torch.int64)
    return tensors


def codebook_key(key: str) -> tuple[str, str]:
    """`quantizer.codebooks.0.weight` -> ("0", "weight")."""
    depth, _, name = key.removeprefix(CODEBOOK_PREFIX).partition(".")
    return depth, name
