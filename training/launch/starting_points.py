"""What `--resume` and `-l` name: the checkpoint of a run, or the weights to start from."""

from __future__ import annotations

import os
from pathlib import Path

from rqstack.archive import newest_snapshot
from rqstack.snapshots import METADATA_FILE
from runtime.errors import UserError, say
from runtime.rundir import runs
from runtime.step_directories import CHECKPOINTS, SNAPSHOTS, complete_steps
from sampling.trained_models import read_metadata
from training.checkpoints.checkpoint_directories import complete_checkpoints, find_sound_checkpoint
from training.launch.flags import LaunchSettings


def run_to_resume(settings: LaunchSettings) -> Path:
    """What --resume continues: the run, its folder of checkpoints or the one checkpoint that -l names, else the newest
    run of the config.
    """
    path = settings.load_path or _newest_run(settings)
    if not path.exists():
        raise UserError(f"-l {path} does not exist")
    if not complete_checkpoints(path):
        raise UserError(f"nothing to resume: {path} has no complete checkpoint")
    return path


def run_dir_of(path: Path) -> Path:
    """The directory of the run that `run_to_resume` found."""
    return complete_checkpoints(path)[0].parent.parent


def find_checkpoint(path: Path) -> Path:
    """The newest sound checkpoint of what `run_to_resume` found."""
    checkpoint = find_sound_checkpoint(path, report=_say_once)
    if checkpoint is None:
        raise UserError(f"nothing to resume: {path} has no complete checkpoint")
    return checkpoint


def _newest_run(settings: LaunchSettings) -> Path:
    if not settings.model_config:
        raise UserError("--resume needs -l RUN, or -m CONFIG to find the newest run of it")
    candidates = runs(settings.result_path, Path(settings.model_config).stem)
    run_dir = next((run for run in candidates if complete_checkpoints(run)), None)
    if run_dir is None:
        raise UserError(
            f"nothing to resume: no run of {settings.model_config} under {settings.result_path} has a complete "
            "checkpoint"
        )
    return run_dir


def _say_once(line: str) -> None:
    """On stderr, from the main process alone; there is no log and no process group yet."""
    if os.environ.get("RANK", "0") == "0":
        say(line, to_stderr=True)


def find_weights(path: Path, epoch: float) -> Path:
    """What -l names: a published file, a snapshot, or a run, of which the snapshot of `epoch` (-1: newest) is taken."""
    if not path.exists():
        raise UserError(f"-l {path} does not exist")
    if path.parent.name == CHECKPOINTS:
        # a checkpoint is for resuming; the snapshot of the same step holds the same weights for use
        path = path.parent.parent / SNAPSHOTS / path.name
        if not path.exists():
            raise UserError(f"there is no snapshot {path}; a checkpoint itself can only be resumed (--resume)")
    if not (path / SNAPSHOTS).is_dir():
        return path
    if epoch < 0:
        snapshot = newest_snapshot(path)
        if snapshot is None:
            raise UserError(f"-l {path} has no complete snapshot")
        return snapshot
    by_epoch = {round(read_metadata(entry)["epoch"], 3): entry for entry in complete_steps(path / SNAPSHOTS)}
    if round(epoch, 3) not in by_epoch:
        choices = ", ".join(f"{value:g}" for value in sorted(by_epoch))
        raise UserError(f"-e {epoch:g}: {path} has no snapshot of that epoch; choose from {choices}")
    return by_epoch[round(epoch, 3)]


def step_of(weights: Path) -> int:
    """The training step that a snapshot's weights are of; 0 of a published file, which does not say."""
    return int(read_metadata(weights).get("step", 0)) if (weights / METADATA_FILE).is_file() else 0
