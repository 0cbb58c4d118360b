"""The published file: a torch.save'd dictionary of parts (`state_dict`, `state_dict_ema`, `discriminator`).

Read as tensors only, and mapped from disk where its format allows. Writing one makes a pickle of plain tensors; nothing
but an explicit conversion to the published format does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rqstack.published_layout import WEIGHT_PARTS
from rqstack.strict_loading import form_of

Parts = dict[str, dict[str, Tensor]]
PUBLISHED_FILE = "model.pt"


def read_published_file(path: Path) -> tuple[Parts, list[str]]:
    """(Parts: name -> named tensors, names of entries that are something else). A bare state dict is one part.

    Raises:
        ValueError: damaged, unsafe, or no dictionary.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {reason[:150]}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary with 'state_dict'")
    if loaded and _is_named_tensors(loaded):  # a bare state dict
        _check_forms(path, loaded)
        return {"state_dict": {str(name): tensor for name, tensor in loaded.items()}}, []
    parts = {
        str(name): dict(part)
        for name, part in loaded.items()
        if _is_named_tensors(part) and (part or name in WEIGHT_PARTS)
    }
    for part in parts.values():
        _check_forms(path, part)
    if not parts:
        raise ValueError(f"{path} holds no named tensors: it has {listed(map(str, loaded)) or 'nothing'}")
    return parts, [str(name) for name in loaded if str(name) not in parts]


def _check_forms(path: Path, part: Mapping[str, Tensor]) -> None:
    for name, tensor in part.items():
        if form := form_of(tensor):
            raise ValueError(f"{path}: {str(name)[:100]} is {form}; weights are tensors that hold their numbers")


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = [name[:40] for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_named_tensors(part: Any) -> bool:
    return isinstance(part, Mapping) and all(isinstance(value, Tensor) for value in part.values())


def write_published_file(path: Path, parts: Parts) -> None:
    """Writes the parts; every tensor has memory of its own."""
    torch.save(
        {name: {key: tensor.contiguous().clone() for key, tensor in part.items()} for name, part in parts.items()}, path
    )
