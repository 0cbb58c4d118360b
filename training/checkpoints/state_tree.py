"""Nested training state as JSON plus tensors, without pickle.

A state is built of dicts, lists, tuples, tensors, numbers, texts, bytes, booleans and None. `encode` replaces every
tensor by a reference and gives the tensors apart; `decode` puts them back, with the memory layout they had (a sharded
tensor as it is). What JSON lacks is written as a dict with one key that starts with `$`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqstack.snapshots import plain_copy


def take_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A JSON tree and the live tensors it refers to, detached; sharded tensors (DTensor) stay what they are.

    A tensor that occurs several times (the same memory, shape and strides) is kept once.

    Raises:
        TypeError: a value that cannot be kept without pickle; the message says where it is.
    """
    encoder = _Encoder()
    return encoder.encode(state, ""), encoder.tensors


def encode(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """`take_apart` with copies of the tensors: contiguous, on the CPU, none sharing memory with another."""
    tree, tensors = take_apart(state)
    return tree, {name: plain_copy(tensor) for name, tensor in tensors.items()}


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `encode` took apart. Tensors that were one are one again."""
    laid_out: dict[str, Tensor] = {}

    def build(node: Any) -> Any:
        if isinstance(node, list):
            return [build(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = next(iter(node), None)
        if tag == "$tensor":
            return _lay_out(node, tensors, laid_out)
        if tag == "$tuple":
            return tuple(build(item) for item in node[tag])
        if tag == "$dict":
            return {build(key): build(value) for key, value in node[tag]}
        if tag == "$bytes":
            return base64.b64decode(node[tag])
        return {key: build(value) for key, value in node.items()}

    return build(tree)


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._references: dict[tuple, dict[str, Any]] = {}
        # Tensors whose address is a key above must live on: a freed address may be given to another tensor.
        self._alive: list[Tensor] = []

    def encode(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor):
            return self._encode_tensor(value.detach(), path)
        if isinstance(value, Mapping):
            return self._encode_mapping(value, path)
        if isinstance(value, tuple):
            return {"$tuple": self._encode_items(value, path)}
        if isinstance(value, list):
            return self._encode_items(value, path)
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"state at {path or 'the top'!r} is a {type(value).__name__}, which a checkpoint cannot hold")

    def _encode_items(self, values: Any, path: str) -> list[Any]:
        return [self.encode(item, f"{path}.{index}" if path else str(index)) for index, item in enumerate(values)]

    def _encode_mapping(self, value: Mapping, path: str) -> dict[str, Any]:
        items = [(key, self.encode(item, f"{path}.{key}" if path else str(key))) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        return {"$dict": [[self.encode(key, path), item] for key, item in items]}

    def _encode_tensor(self, tensor: Tensor, path: str) -> dict[str, Any]:
        to_local = getattr(tensor, "to_local", None)
        local = tensor if to_local is None else to_local()
        identity = (local.device, local.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        # Empty tensors all have address 0 and are not one.
        if local.numel() and identity in self._references:
            return self._references[identity]
        name = path or "tensor"
        if name in self.tensors:
            name = f"{name}#{len(self.tensors)}"
        order = None if local is not tensor else _dense_order(tensor)
        self.tensors[name] = tensor
        reference = {"$tensor": name} if order is None else {"$tensor": name, "memory": order}
        self._references[identity] = reference
        self._alive.append(tensor)
        return reference


def _lay_out(node: dict[str, Any], tensors: Mapping[str, Tensor], laid_out: dict[str, Tensor]) -> Tensor:
    name = node["$tensor"]
    if name not in laid_out:
        tensor = tensors[name]
        if "memory" in node:
            tensor = _in_memory_order(tensor, node["memory"])
        elif "order" in node:  # the first format kept such tensors permuted
            tensor = tensor.permute(_inverse(node["order"]))
        laid_out[name] = tensor
    return laid_out[name]


def _in_memory_order(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values with dims that follow each other in memory in `order`."""
    dense = torch.empty([tensor.shape[dim] for dim in order], dtype=tensor.dtype, device=tensor.device)
    return dense.permute(_inverse(order)).copy_(tensor)


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def state_of(item: Any) -> Any:
    """The state of something with `state_dict()`; anything else is a state itself."""
    return item.state_dict() if hasattr(item, "state_dict") else item


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only (a DTensor)."""
    return hasattr(tensor, "to_local")


def _dense_order(tensor: Tensor) -> list[int] | None:
    """The order of dims in memory of a dense tensor that is not plainly contiguous (channels-last), else None."""
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride()[dim])
    return order if tensor.permute(order).is_contiguous() else None
