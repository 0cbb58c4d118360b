"""Checkpoints written in one call, and read back whole, whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.step_directories import step_name
from training.checkpoints.checkpoint_restoring import open_checkpoint, read_meta, restore_checkpoint
from training.checkpoints.checkpoint_writer import CheckpointWriter


def save_checkpoint(
    directory: str | Path, step: int, objects: Mapping[str, Any], meta: Mapping[str, Any] | None = None, **kept: Any
) -> Path:
    """Writes `directory/step_XXXXXXXX` at once; `keep_last` and `keep_every` as for `CheckpointWriter`."""
    CheckpointWriter(directory, asynchronous=False, **kept).save(step, objects, meta)
    return Path(directory) / step_name(step)


def load_checkpoint(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """`{"step": int, "meta": dict, <object name>: <nested state>, ...}`, tensors whole, on the CPU."""
    contents = open_checkpoint(path, verify=verify)
    taken = {name: Taker() for name in contents.trees}
    restore_checkpoint(contents.directory, taken, verify=False)
    return {"step": contents.step, "meta": read_meta(contents), **{name: item.state for name, item in taken.items()}}


class Taker:
    """Takes any state."""

    state: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        self.state = state
