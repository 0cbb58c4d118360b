"""Weights from files into feature networks, as they are: nothing is cast, nothing is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rqstack.finite import is_finite
from rqstack.strict_loading import check_kinds


def read_state_dict(file: Path) -> dict[str, Any]:
    """The tensors of a `.safetensors` file, or of a torch file read as weights only."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def load_exactly(network: nn.Module, state: Mapping[str, Any]) -> None:
    """`load_state_dict` that refuses what it would cast.

    Raises:
        ValueError: see `check_weights`. RuntimeError: missing or unknown names, or other shapes.
    """
    check_weights(network, state)
    network.load_state_dict(state)


def check_weights(network: nn.Module, state: Mapping[str, Any]) -> None:
    """That tensors can be a network's weights: plain ones, floats where it has floats, finite, no negative variances.

    Names and shapes are `load_state_dict`'s to compare.

    Raises:
        ValueError: naming the tensor.
    """
    strangers = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strangers:
        raise ValueError(f"{strangers[0]} is no tensor")
    wanted = network.state_dict()
    check_kinds(wanted, state)
    for name in wanted.keys() & state.keys():
        if not is_finite(state[name]):
            raise ValueError(f"{name} holds values that are not finite")
        if name.endswith("running_var") and bool((state[name] < 0).any()):
            raise ValueError(f"{name} holds negative variances")
