"""What a checkpoint holds and where: `state.json` and `index.json`, read with suspicion.

Tensors are called `<object>/<path in its state>`. A tensor lies in one chunk or, where ranks held parts of it, in
several; `index.json` gives dtype, shape and chunks (file, offsets, sizes) of each. Both become the `Metadata` that
`torch.distributed.checkpoint` plans with. A file may come from anywhere: every number is checked before memory is
allocated for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from runtime.errors import UserError, one_line
from runtime.step_directories import read_json
from training.checkpoints.checkpoint_directories import INDEX, STATE, read_format, read_manifest

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
}
_MOST_ENTRIES = 2**62  # of a tensor, its empty dims not counted
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


@dataclass(frozen=True)
class Place:
    """Where the values of one chunk lie, and how many they are."""

    file: str
    key: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """A checkpoint without its tensors' values."""

    directory: Path
    step: int
    meta: Any
    trees: dict[str, Any]
    metadata: Metadata

    def names_of(self, name: str) -> list[str]:
        """Full names of the tensors that belong to one object."""
        return [full for full in self.metadata.state_dict_metadata if full.startswith(f"{name}/")]


def state_text(step: int, meta: Any, trees: Mapping[str, Any]) -> str:
    """`state.json`: everything that is not a tensor."""
    return json.dumps({"step": step, "meta": meta, "objects": trees})


def index_text(metadata: Metadata, file_of: Mapping[MetadataIndex, str]) -> str:
    """`index.json`, from what `torch.distributed.checkpoint` planned and the file each chunk was written to."""
    tensors = {}
    for name, tensor in tensors_of(metadata).items():
        chunks = [
            [file_of[MetadataIndex(name, chunk.offsets)], list(chunk.offsets), list(chunk.sizes)]
            for chunk in tensor.chunks
        ]
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        tensors[name] = {"dtype": dtype, "shape": list(tensor.size), "chunks": chunks}
    return json.dumps({"tensors": tensors})


def read_contents(directory: Path) -> Contents:
    """Everything about a checkpoint but its tensors' values, of this format or the first one.

    Raises:
        UserError: a file is missing, damaged, or says what no checkpoint says; the message names it.
    """
    files = read_manifest(directory)
    state = read_json(directory / STATE)
    step, trees = state.get("step"), state.get("objects")
    if type(step) is not int or not isinstance(trees, dict) or "meta" not in state:
        raise UserError(f"{directory / STATE} is not what a checkpoint writes")
    tensors = _first_format(directory, trees, files) if read_format(directory) == 1 else _second_format(directory)
    return Contents(directory, step, state["meta"], trees, _metadata(directory, tensors, files))


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: list[tuple[Place, tuple[int, ...]]]  # place and offsets


def _second_format(directory: Path) -> Iterator[_Tensor]:
    tensors = read_json(directory / INDEX).get("tensors")
    if not isinstance(tensors, dict):
        raise UserError(f"{directory / INDEX} is not what a checkpoint writes")
    for name, entry in tensors.items():
        try:
            chunks = [
                (Place(_text(file), name, _sizes(sizes)), _sizes(offsets)) for file, offsets, sizes in entry["chunks"]
            ]
            yield _Tensor(name, DTYPES[entry["dtype"]], _sizes(entry["shape"]), chunks)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{directory / INDEX}: the entry of {name!r} is not what a checkpoint writes") from error


def _first_format(directory: Path, objects: Mapping[str, Any], files: Mapping[str, Any]) -> Iterator[_Tensor]:
    """One file per object, every tensor whole."""
    for name in objects:
        file = f"{name}.safetensors"
        if file not in files:
            raise UserError(f"{directory}: {file!r} is not in the manifest")
        try:
            with safe_open(directory / file, framework="pt") as opened:
                for key in opened.keys():
                    part = opened.get_slice(key)
                    shape = tuple(part.get_shape())
                    dtype = DTYPES[_SAFETENSORS_DTYPES[part.get_dtype()]]
                    yield _Tensor(f"{name}/{key}", dtype, shape, [(Place(file, key, shape), (0,) * len(shape))])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{directory / file} cannot be read: {one_line(error)}") from error


def tensors_of(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """What the metadata say of every tensor; there is nothing else in them."""
    entries = metadata.state_dict_metadata.items()
    tensors = {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
    assert len(tensors) == len(metadata.state_dict_metadata), "what is no tensor stands in state.json"
    return tensors


def _metadata(directory: Path, tensors: Iterator[_Tensor], files: Mapping[str, Mapping[str, Any]]) -> Metadata:
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, Place] = {}
    bytes_in = dict.fromkeys(files, 0)
    for tensor in tensors:
        _check_chunks(directory, tensor, files)
        chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(place.sizes)) for place, at in tensor.chunks]
        properties = TensorProperties(dtype=tensor.dtype)
        entries[tensor.name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for place, offsets in tensor.chunks:
            places[MetadataIndex(tensor.name, offsets)] = place
            bytes_in[place.file] += math.prod(place.sizes) * tensor.dtype.itemsize
    for file, total in bytes_in.items():
        if total > files[file]["bytes"]:
            raise UserError(f"{directory / INDEX} says that {file} holds {total} bytes, it has {files[file]['bytes']}")
    return Metadata(entries, storage_data=places)


def _check_chunks(directory: Path, tensor: _Tensor, files: Mapping[str, Any]) -> None:
    """Every chunk lies in a file of the manifest and inside the tensor, and together they fill it."""
    for place, offsets in tensor.chunks:
        if place.file not in files:
            raise UserError(f"{directory}: {tensor.name} lies in {place.file!r}, which is not in the manifest")
        inside = len(offsets) == len(place.sizes) == len(tensor.shape) and all(
            offset + size <= extent for offset, size, extent in zip(offsets, place.sizes, tensor.shape)
        )
        if not inside:
            raise UserError(f"{directory}: a chunk of {tensor.name} lies outside its shape {list(tensor.shape)}")
    filled = sum(math.prod(place.sizes) for place, _ in tensor.chunks)
    if filled != math.prod(tensor.shape) or len({offsets for _, offsets in tensor.chunks}) != len(tensor.chunks):
        raise UserError(f"{directory}: the chunks of {tensor.name} do not make up its shape {list(tensor.shape)}")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
        raise ValueError(values)
    if math.prod(max(1, value) for value in values) > _MOST_ENTRIES:
        raise ValueError(values)
    return tuple(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
