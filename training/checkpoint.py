"""Checkpoints: what a run needs to go on exactly where it stopped.

A checkpoint is a directory `checkpoints/step_00001000/`: one safetensors file per named object, `state.json` (all
that is not a tensor) and `manifest.json` (SHA-256 of the others). It is written beside its final name and renamed
when complete; a reader does not see it before. To use a trained model elsewhere, write a snapshot instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from runtime.atomic import (
    atomic_directory,
    is_complete,
    remove_directory,
    remove_partial_directories,
    sha256_of_file,
)
from runtime.errors import UserError, one_line
from training import state_tree

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
STEP_PREFIX = "step_"
_RESERVED = ("step", "meta")


def step_name(step: int) -> str:
    """`step_00001000`: sorts like the number."""
    return f"{STEP_PREFIX}{step:08d}"


def save_checkpoint(
    directory: str | Path,
    step: int,
    objects: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    *,
    keep_last: int | None = None,
) -> Path:
    """Write `directory/step_XXXXXXXX` and return it. Only one process may write to a directory.

    Args:
        directory: the run's `checkpoints` directory.
        step: optimizer steps done.
        objects: name -> something with `state_dict()`, or a nested state itself.
        meta: what the run wants back besides (images seen, ...).
        keep_last: complete checkpoints that stay, this one (always) and the newest others; None keeps all.

    Raises:
        UserError: the directory cannot be written (full disk, no permission); older checkpoints are untouched.
    """
    final = Path(directory) / step_name(step)
    with atomic_directory(final) as partial:
        trees = {}
        for name, item in objects.items():
            assert name not in _RESERVED and name.isidentifier(), f"{name!r} cannot name an object of a checkpoint"
            trees[name], tensors = state_tree.encode(item.state_dict() if hasattr(item, "state_dict") else item)
            save_file(tensors, partial / f"{name}.safetensors")
        meta_tree, meta_tensors = state_tree.encode(dict(meta or {}))
        assert not meta_tensors, "meta holds plain values; tensors belong into an object"
        state = {"step": step, "meta": meta_tree, "objects": trees}
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        (partial / MANIFEST).write_text(json.dumps(_manifest(partial), indent=1), encoding="utf-8")
    prune_steps(final, keep_last)
    return final


def load_checkpoint(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read one checkpoint: `{"step": int, "meta": dict, <object name>: <nested state>, ...}`, tensors on the CPU.

    Args:
        path: a `step_XXXXXXXX` directory, or a run or `checkpoints` directory whose newest one is meant.
        verify: compare every file with its SHA-256 in the manifest.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        UserError: a file is missing, truncated or altered; the message names it.
    """
    found = find_latest_checkpoint(path)
    if found is None:
        raise FileNotFoundError(f"no complete checkpoint in {path}")
    manifest = _read_json(found / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{found}: checkpoint format {manifest.get('format')}, this version reads {FORMAT}")
    if verify:
        _verify(found, manifest["files"])
    state = _read_json(found / STATE)
    loaded = {"step": state["step"], "meta": state_tree.decode(state["meta"], {})}
    for name, tree in state["objects"].items():
        loaded[name] = state_tree.decode(tree, _read_tensors(found / f"{name}.safetensors"))
    return loaded


def restore_checkpoint(path: str | Path, objects: Mapping[str, Any], *, verify: bool = True) -> dict[str, Any]:
    """Load a checkpoint into live objects (each with `load_state_dict`); returns its `meta` and `step` in one dict.

    Raises:
        UserError: the checkpoint has other objects than asked for, or one does not fit.
    """
    loaded = load_checkpoint(path, verify=verify)
    names = set(loaded) - set(_RESERVED)
    if names != set(objects):
        raise UserError(
            f"{path} holds {', '.join(sorted(names))} but this run has {', '.join(sorted(objects))}: "
            "resume with the configuration it was started with"
        )
    for name, item in objects.items():
        try:
            item.load_state_dict(loaded[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{path}: {name} does not fit this run: {one_line(error)}") from error
    return {**loaded["meta"], "step": loaded["step"]}


def find_latest_checkpoint(path: str | Path) -> Path | None:
    """The newest complete checkpoint of a run directory or its `checkpoints` directory, or `path` if it is one."""
    return next(iter(complete_checkpoints(path)), None)


def complete_checkpoints(path: str | Path) -> list[Path]:
    """All complete checkpoints under a run or `checkpoints` directory, newest first."""
    path = Path(path)
    if path.name.startswith(STEP_PREFIX):
        return [path] if is_complete(path) else []
    return complete_steps(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)


def complete_steps(parent: str | Path) -> list[Path]:
    """The complete `step_XXXXXXXX` directories in `parent` (checkpoints or snapshots), newest first."""
    found = [entry for entry in Path(parent).glob(f"{STEP_PREFIX}*") if is_complete(entry)]
    return sorted(found, key=lambda entry: entry.name, reverse=True)


def prune_steps(written: Path, keep_last: int | None) -> None:
    """Remove unfinished directories beside `written`, and all but `keep_last` complete ones.

    `written` always stays, also beside ones of larger steps that another trajectory left; None keeps all.
    """
    remove_partial_directories(written.parent, STEP_PREFIX)
    if keep_last is not None:
        assert keep_last >= 1, "what was just written must stay"
        others = [entry for entry in complete_steps(written.parent) if entry.name != written.name]
        for old in others[keep_last - 1 :]:
            remove_directory(old)


def discard_after(directory: str | Path, step: int) -> list[Path]:
    """Remove the complete checkpoints or snapshots in `directory` of steps beyond `step`; returns them, newest first.

    For the main process of a run that resumes at `step`: what lies beyond belongs to a trajectory that is given up,
    and would be taken for the newest state of this one.

    Raises:
        UserError: one cannot be removed; an interrupted removal leaves an incomplete directory, absent for readers.
    """
    beyond = [entry for entry in complete_steps(directory) if _step_of(entry) > step]
    for entry in beyond:
        try:
            remove_directory(entry)
        except OSError as error:
            raise UserError(f"cannot remove {entry}: {one_line(error)}") from error
    return beyond


def find_sound_checkpoint(path: str | Path, report: Callable[[str], Any] = print) -> Path | None:
    """The newest checkpoint whose files all match their hashes. Damaged ones are reported and passed over.

    Raises:
        UserError: there are complete checkpoints, but every one is damaged.
    """
    candidates = complete_checkpoints(path)
    for candidate in candidates:
        try:
            _verify(candidate, _read_json(candidate / MANIFEST)["files"])
        except UserError as error:
            report(f"passing over a damaged checkpoint: {error}")
            continue
        report(f"resuming from {candidate}")
        return candidate
    if candidates:
        raise UserError(f"every checkpoint in {path} is damaged")
    return None


def _step_of(directory: Path) -> int:
    """The step of `step_XXXXXXXX`; -1 for a name that no run writes, which is nobody's to remove."""
    digits = directory.name.removeprefix(STEP_PREFIX)
    return int(digits) if digits.isdecimal() else -1


def _manifest(directory: Path) -> dict[str, Any]:
    files = {
        file.name: {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        for file in sorted(directory.iterdir())
    }
    return {"format": FORMAT, "files": files}


def _verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise UserError(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}")
        if sha256_of_file(file) != expected["sha256"]:
            raise UserError(f"{file} does not match the SHA-256 in its manifest")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not what a checkpoint writes")
    return content


def _read_tensors(file: Path) -> dict[str, Any]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
