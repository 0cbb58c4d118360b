"""A run's directories of steps in `checkpoints` and `snapshots`: how they are called, which are there, which may go.

One counts when it carries its completion mark; the JSON files in it may have come from anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.atomic import is_complete, remove_directory, remove_partial_directories
from runtime.errors import UserError, one_line

CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
BEST = "best"  # among the snapshots: that of the best score; in its metadata: why it is the best
STEP_PREFIX = "step_"


def step_name(step: int) -> str:
    """`step_00001000`: sorts like the number."""
    return f"{STEP_PREFIX}{step:08d}"


def complete_steps(parent: str | Path) -> list[Path]:
    """The complete `step_XXXXXXXX` directories in `parent` (checkpoints or snapshots), newest first."""
    found = [entry for entry in Path(parent).glob(f"{STEP_PREFIX}*") if is_complete(entry)]
    return sorted(found, key=lambda entry: entry.name, reverse=True)


def best_snapshot_of(run: Path) -> Path:
    """The snapshot of the best score of a run, where scores chose one; else the run, which stands for its newest."""
    best = run / SNAPSHOTS / BEST
    return best if best.is_dir() else run


def prune_steps(written: Path, keep_last: int | None, keep_every: int | None = None) -> None:
    """Remove unfinished directories beside `written`, and all but `keep_last` complete ones.

    `written` always stays, also beside ones of larger steps that another trajectory left; so does every step that is a
    multiple of `keep_every`, and these do not count among the last ones. None keeps all.
    """
    remove_partial_directories(written.parent, STEP_PREFIX)
    if keep_last is None:
        return
    assert keep_last >= 1, "what was just written must stay"
    others = [entry for entry in complete_steps(written.parent) if entry.name != written.name]
    passing = [entry for entry in others if not _is_milestone(entry, keep_every)]
    for old in passing[keep_last - 1 :]:
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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it cannot be read, is not JSON, is nested too deeply, or is no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not what a checkpoint writes")
    return content


def _is_milestone(directory: Path, keep_every: int | None) -> bool:
    step = _step_of(directory)
    return keep_every is not None and step > 0 and step % keep_every == 0


def _step_of(directory: Path) -> int:
    """The step of `step_XXXXXXXX`; -1 for a name that no run writes, which is nobody's to remove."""
    digits = directory.name.removeprefix(STEP_PREFIX)
    return int(digits) if digits.isdecimal() else -1
