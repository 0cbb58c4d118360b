"""Checkpoints back into the live objects of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from runtime import distributed
from runtime.errors import UserError, one_line
from training.checkpoints import state_tree
from training.checkpoints.checkpoint_directories import find_damage, find_latest_checkpoint
from training.checkpoints.checkpoint_index import Contents, read_contents, tensors_of
from training.checkpoints.checkpoint_storage import SafetensorsReader
from training.checkpoints.engine import explained, quiet_without_group


def open_checkpoint(path: str | Path, *, verify: bool) -> Contents:
    """What the newest checkpoint of a run holds, and where; every tensor is still on the disk.

    Args:
        path: a `step_XXXXXXXX` directory, or a run or `checkpoints` directory.
        verify: compare every file with its SHA-256 in the manifest.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        UserError: a file is missing, truncated or altered; the message names it.
    """
    found = find_latest_checkpoint(path)
    if found is None:
        raise FileNotFoundError(f"no complete checkpoint in {path}")
    damage = find_damage(found) if verify else None
    if damage is not None:
        raise UserError(damage)
    return read_contents(found)


def read_progress(path: str | Path) -> dict[str, Any]:
    """`meta` and `step` of a run's checkpoint in one dict, without its tensors.

    Raises:
        UserError: they do not say where a run stands.
    """
    contents = open_checkpoint(path, verify=False)
    progress = {**read_meta(contents), "step": contents.step}
    if contents.step < 1 or type(progress.get("images_seen")) is not int:
        raise UserError(f"{contents.directory} does not say how many steps and images its run had done")
    return progress


def restore_checkpoint(path: str | Path, objects: Mapping[str, Any], *, verify: bool = True) -> dict[str, Any]:
    """Load a checkpoint into live objects (each with `load_state_dict`); returns its `meta` and `step` in one dict.

    All ranks call it. Where an object's state holds sharded tensors, a rank reads its shards only. An object whose
    state appears with training (an optimizer's moments) and is sharded then has `allocate_state()`.

    Raises:
        UserError: the checkpoint has other objects than asked for, or one does not fit.
    """
    contents = open_checkpoint(path, verify=verify)
    if set(contents.trees) != set(objects):
        raise UserError(
            f"{path} holds {', '.join(sorted(contents.trees))} but this run has {', '.join(sorted(objects))}: "
            "resume with the configuration it was started with"
        )
    meta = read_meta(contents)
    targets = _targets(contents, {name: _live_tensors(name, item, contents) for name, item in objects.items()})
    _fill(contents, targets)
    for name, item in objects.items():
        state = _decoded(contents, name, targets)
        try:
            item.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {name} does not fit this run: {one_line(error)}") from error
    return {**meta, "step": contents.step}


def _live_tensors(name: str, item: Any, contents: Contents) -> dict[str, Tensor]:
    """The tensors of an object that the checkpoint is for, under their full names."""
    tensors = state_tree.take_apart(state_tree.state_of(item))[1]
    missing = any(full.partition("/")[2] not in tensors for full in contents.names_of(name))
    if missing and hasattr(item, "allocate_state"):
        item.allocate_state()
        tensors = state_tree.take_apart(state_tree.state_of(item))[1]
    return tensors


def _targets(contents: Contents, live: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Memory for every tensor of a checkpoint: the live one where this process holds a shard of it, else a new one."""
    targets = {}
    for full, saved in tensors_of(contents.metadata).items():
        name, _, key = full.partition("/")
        tensor = live.get(name, {}).get(key)
        if tensor is None or not state_tree.is_sharded(tensor):
            targets[full] = torch.empty(saved.size, dtype=saved.properties.dtype)
            continue
        if tensor.shape != saved.size:
            raise UserError(
                f"{contents.directory}: {name} does not fit this run: {key} has shape {list(saved.size)} "
                f"in the checkpoint, {list(tensor.shape)} here"
            )
        same = tensor.dtype == saved.properties.dtype
        targets[full] = tensor if same else torch.empty_like(tensor, dtype=saved.properties.dtype)
    return targets


def _fill(contents: Contents, targets: dict[str, Tensor]) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        quiet_without_group()
        dcp_load(
            targets,
            storage_reader=SafetensorsReader(contents),
            planner=planner,
            no_dist=distributed.get_world_size() == 1,
        )
    except CheckpointException as failure:
        raise explained(failure, f"cannot read {contents.directory}") from None


def _decoded(contents: Contents, name: str, targets: Mapping[str, Tensor]) -> Any:
    tensors = {full.partition("/")[2]: targets[full] for full in contents.names_of(name)}
    try:
        return state_tree.decode(contents.trees[name], tensors)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{contents.directory}: the state of {name} cannot be read: {one_line(error)}") from error


def read_meta(contents: Contents) -> dict[str, Any]:
    """What the run wanted back besides its objects."""
    try:
        return dict(state_tree.decode(contents.meta, {}))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{contents.directory}: its meta cannot be read: {one_line(error)}") from error
