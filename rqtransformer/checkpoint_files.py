"""Checkpoints on disk, our snapshots and the published layout: reading them, and filling a model of a given class."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rqtransformer.config import RQTransformerConfig

COMPLETE = "COMPLETE"
Model = TypeVar("Model", bound=nn.Module)


def load_checkpoint(
    model_class: type[Model], path: str | Path, ema: bool = False, device: str | torch.device = "cpu"
) -> Model:
    """A model in eval mode; arguments and errors are those of `rqtransformer.load_rqtransformer`.

    model_class: built from an `RQTransformerConfig`. The snapshot's metadata is put on the model as `metadata`.
    """
    path = Path(path)
    is_snapshot = (path / COMPLETE).exists()
    state_dict, config_path = (_read_snapshot if is_snapshot else _read_published)(path, ema)
    config = _read_config(config_path)
    dataset = config.get("dataset") or {}
    arch = RQTransformerConfig.from_mapping(config.arch, vocab_size=dataset.get("vocab_size"))
    with torch.device("meta"):
        model = model_class(arch)
    _load_strictly(model, state_dict, path)
    sampling = config.get("sampling") or {}
    model.sampling_defaults = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in sampling.items()
    }
    model.metadata = _read_metadata(path / "metadata.json") if is_snapshot else {}
    return model.to(device).eval()


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(metadata).__name__}")
    return metadata


def _read_snapshot(path: Path, ema: bool) -> tuple[dict[str, Tensor], Path]:
    weights = path / ("model_ema.safetensors" if ema else "model.safetensors")
    if ema and not weights.exists():
        raise ValueError(f"{path} has no averaged weights (model_ema.safetensors)")
    if not weights.exists():
        raise FileNotFoundError(f"{path} has no {weights.name}")
    try:
        return load_file(weights), path / "config.yaml"
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}") from error


def _read_published(path: Path, ema: bool) -> tuple[dict[str, Tensor], Path]:
    path = _published_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises many types for damaged or unsafe files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary with 'state_dict'")
    key = "state_dict_ema" if ema else "state_dict"
    state_dict = checkpoint.get(key)
    if state_dict is None:
        raise ValueError(f"{path} has no {key!r}; it has {', '.join(sorted(map(str, checkpoint))) or 'nothing'}")
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}, path.with_name("config.yaml")


def _published_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if (path / "model.safetensors").exists():
        raise ValueError(f"{path} is an incomplete snapshot: it has no {COMPLETE} mark")
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        raise FileNotFoundError(f"{path} must be a snapshot or hold exactly one .pt file; it holds {len(files)}")
    return files[0]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _read_config(path: Path) -> DictConfig:
    if not path.exists():
        raise FileNotFoundError(f"no config.yaml beside the checkpoint ({path})")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # yaml and OmegaConf errors share no base class
        raise ValueError(f"{path} is not a valid YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(config, DictConfig) or "arch" not in config:
        raise ValueError(f"{path} has no 'arch' section")
    if config.arch.get("type", "rq-transformer") != "rq-transformer":
        raise ValueError(f"{path}: arch.type is {config.arch.type!r}, not 'rq-transformer'")
    return config


def _load_strictly(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Gives the model (on the meta device) its tensors, or says which names and shapes do not fit."""
    wanted = model.state_dict()
    problems = []
    for name in sorted(wanted.keys() - state_dict.keys()):
        nearest = difflib.get_close_matches(name, state_dict.keys() - wanted.keys(), n=1)
        problems.append(f"missing {name}" + (f" (is it {nearest[0]}?)" if nearest else ""))
    problems += [f"unexpected {name}" for name in sorted(state_dict.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & state_dict.keys()):
        if wanted[name].shape != state_dict[name].shape:
            problems.append(f"{name} is {list(state_dict[name].shape)}, the config wants {list(wanted[name].shape)}")
    if problems:
        raise ValueError(f"{path} does not fit its config: {'; '.join(problems)}")
    # Copies: a memory-mapped or aliased tensor must not be shared by two parameters.
    tensors = {name: state_dict[name].to(wanted[name].dtype, copy=True) for name in wanted}
    model.load_state_dict(tensors, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
