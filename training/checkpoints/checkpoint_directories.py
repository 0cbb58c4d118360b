"""Directories of checkpoints: which are complete, which are sound, what their manifest says.

A `step_XXXXXXXX` directory counts when it carries its completion mark. It is sound when every file has the
size and SHA-256 that its `manifest.json` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime import distributed
from runtime.atomic import is_complete, sha256_of_file
from runtime.errors import UserError, one_line
from runtime.step_directories import CHECKPOINTS, STEP_PREFIX, complete_steps, read_json

MANIFEST = "manifest.json"
STATE = "state.json"
INDEX = "index.json"
FORMAT = 2
READABLE_FORMATS = (1, 2)


def find_latest_checkpoint(path: str | Path) -> Path | None:
    """The newest complete checkpoint of a run directory or its `checkpoints` directory, or `path` if it is one."""
    return next(iter(complete_checkpoints(path)), None)


def complete_checkpoints(path: str | Path) -> list[Path]:
    """All complete checkpoints under a run or `checkpoints` directory, newest first."""
    path = Path(path)
    if path.name.startswith(STEP_PREFIX):
        return [path] if is_complete(path) else []
    return complete_steps(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)


def find_sound_checkpoint(path: str | Path, report: Callable[[str], Any] = print) -> Path | None:
    """The newest checkpoint whose files all match their hashes. Damaged ones are reported and passed over.

    To be called by all ranks, which share the hashing; without a process group by each for itself.

    Raises:
        UserError: there are complete checkpoints, but every one is damaged.
    """
    candidates = distributed.run_on_main(lambda: [str(found) for found in complete_checkpoints(path)])
    for candidate in map(Path, candidates):
        damage = find_damage(candidate)
        if damage is None:
            report(f"resuming from {candidate}")
            return candidate
        report(f"passing over a damaged checkpoint: {damage}")
    if candidates:
        raise UserError(f"every checkpoint in {path} is damaged")
    return None


def find_damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Every rank looks at its share and learns all answers."""
    try:
        _verify_share(directory, distributed.get_rank(), distributed.get_world_size())
        mine = None
    except UserError as error:
        mine = one_line(error)
    return next((damage for damage in distributed.gather_objects(mine) if damage is not None), None)


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """File name -> its `sha256` and `bytes`.

    Raises:
        UserError: not a manifest, of a format this version does not read, or naming files outside the directory.
    """
    file = directory / MANIFEST
    manifest = read_json(file)
    if manifest.get("format") not in READABLE_FORMATS:
        formats = " and ".join(map(str, READABLE_FORMATS))
        raise UserError(f"{directory}: checkpoint format {manifest.get('format')}, this version reads {formats}")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files or not all(map(_is_entry, files.values())):
        raise UserError(f"{file} is not what a checkpoint writes")
    for name in files:
        if not is_plain_name(name):
            raise UserError(f"{file} names {name!r}, which is not a file of this directory")
    return files


def read_format(directory: Path) -> int:
    """The format number in a manifest that `read_manifest` accepts."""
    return read_json(directory / MANIFEST)["format"]


def manifest_text(files: Mapping[str, Mapping[str, Any]]) -> str:
    """`manifest.json` for file name -> `sha256` and `bytes`."""
    return json.dumps({"format": FORMAT, "files": dict(sorted(files.items()))}, indent=1)


def is_plain_name(name: Any) -> bool:
    """Whether `name` is a file directly inside a directory: no path, nothing that leads elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _verify_share(directory: Path, rank: int, world_size: int) -> None:
    for name, expected in sorted(read_manifest(directory).items())[rank::world_size]:
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise UserError(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}")
        if sha256_of_file(file) != expected["sha256"]:
            raise UserError(f"{file} does not match the SHA-256 in its manifest")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)
