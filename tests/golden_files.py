"""Reading the reference numbers under `tests/golden/`: one folder per set, described by its README.md."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from tests.repository import GOLDEN


class GoldenSet:
    """One set of reference numbers. Every part is read on first use and belongs to this object alone.

    Attributes:
        path: the folder of the set.
        io: name -> tensor, inputs and expected outputs (`io.safetensors`).
        config: the set's `config.yaml`, as written.
        checkpoint: the set's `model.pt` in the published layout, read with `weights_only=True`.
    """

    def __init__(self, name: str) -> None:
        self.path = GOLDEN / name
        if not self.path.is_dir():
            known = sorted(entry.name for entry in GOLDEN.iterdir() if entry.is_dir())
            raise ValueError(f"no golden set {name!r}; there are {', '.join(known)}")

    @cached_property
    def io(self) -> dict[str, Tensor]:
        return load_file(self.path / "io.safetensors")

    @cached_property
    def config(self) -> DictConfig:
        return OmegaConf.load(self.path / "config.yaml")

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.path / "model.pt", map_location="cpu", weights_only=True)

    def json(self, file_name: str) -> Any:
        """A JSON file of the set, for example `schedules.json` of `losses`."""
        return json.loads((self.path / file_name).read_text())


def published_keys() -> dict[str, Any]:
    """`keys.json`: parameter counts, state-dict names and shapes of every published configuration."""
    return json.loads((GOLDEN / "keys.json").read_text())


def copies_of(folder: Path, *names: str) -> Path:
    """Copies the sets of these names into a folder, for tests that write beside them; returns the folder."""
    for name in names:
        shutil.copytree(GOLDEN / name, folder / name)
    return folder
