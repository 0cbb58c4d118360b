"""What a snapshot is made of: the names of its files, a model's tensors as they are kept in it, and its writing.

A folder with `model.safetensors` (and `model_ema.safetensors`), `config.yaml`, `metadata.json` and the mark `COMPLETE`,
without which it does not exist for a reader. `rqstack.archive` reads it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MODEL_FILE = "model.safetensors"
EMA_FILE = "model_ema.safetensors"
CONFIG_FILE = "config.yaml"
METADATA_FILE = "metadata.json"
COMPLETE = "COMPLETE"
CHUNK_BYTES = 1 << 22
LEFTOVER_SECONDS = 3600.0
"""A temporary folder that was not touched for so long has no writer any more."""


def plain_copy(tensor: Tensor) -> Tensor:
    """The tensor's values in memory of their own: dense, on the CPU, shared with nobody."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor.detach())


def snapshot_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model's state dict: on the CPU, contiguous, none sharing memory with another.

    The names are the module's own: give the model itself, not what data parallelism or compilation put around it.
    """
    return {name: plain_copy(tensor) for name, tensor in model.state_dict().items()}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of everything in a model's state dict, whatever file or device it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(snapshot_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_snapshot(
    folder: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    config_text: str,
    metadata: Mapping[str, Any],
    *,
    hashes: bool = True,
) -> None:
    """Writes weights, config and metadata into a folder; whoever makes the folder appear sets the mark.

    Args:
        weights: file name -> named tensors.
        config_text: of `config.yaml`; empty: none is written.
        metadata: what JSON can hold.
        hashes: add `sha256` to the metadata: file name -> digest of the weights as written.
    """
    for name, tensors in weights.items():
        save_file(_apart(tensors), folder / name)
    if config_text:
        (folder / CONFIG_FILE).write_text(config_text, encoding="utf-8")
    known = dict(metadata)
    if hashes:
        known["sha256"] = {name: sha256_of(folder / name) for name in weights}
    (folder / METADATA_FILE).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """Gives a place to write to; at the end that place becomes `folder`, complete, or vanishes if something fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".partial-{folder.name}-"
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield partial
        if folder.exists():
            folder.rmdir()  # empty, or this raises
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(file: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and none sharing memory with another, as safetensors wants it; copies where needed."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        apart[name] = tensor if whole and memory not in seen else tensor.clone()
        seen.add(memory)
    return apart
