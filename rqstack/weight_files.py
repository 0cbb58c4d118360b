"""Named tensors in safetensors files: one file, or several with an index in JSON that says which holds which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", SAFETENSORS)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. ValueError for a damaged one."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def files_of_index(index: Path) -> dict[str, list[str]]:
    """File name -> the tensors that the index says it holds. ValueError for a damaged index, or files elsewhere."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{index} is damaged: {str(error)[:100]}") from error
    placed = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(placed, Mapping) or not placed:
        raise ValueError(f"{index} has no 'weight_map' from tensors to files")
    files: dict[str, list[str]] = {}
    for name, file in placed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SAFETENSORS):
            raise ValueError(f"{index}: {str(file)[:80]!r} is no name of a safetensors file beside it")
        files.setdefault(file, []).append(name)
    return files


def read_sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all files of an index, in its order.

    Raises:
        FileNotFoundError: a file is not there. ValueError: damaged, or a file does not hold what the index says.
    """
    tensors: dict[str, Tensor] = {}
    for file, names in files_of_index(index).items():
        path = index.with_name(file)
        if not path.is_file():
            raise FileNotFoundError(f"{index.name} names {file}, which is not in {index.parent}")
        held = read_safetensors(path)
        missing = [name for name in names if name not in held]
        if missing:
            raise ValueError(f"{path} has no {missing[0]!r}, which {index.name} says it has ({len(missing)} such)")
        tensors |= {name: held[name] for name in names}
    return tensors
