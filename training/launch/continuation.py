"""Which run a process continues: after `--auto-resume`, or when a launcher has started it again.

`torchrun --max-restarts N` starts all processes of a node again when one has failed, with the same command line. They
continue the run that their first start made, which `launch.json` in its directory tells.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runtime.atomic import write_text_atomically
from runtime.rundir import runs
from runtime.step_directories import CHECKPOINTS
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.launch.flags import LaunchSettings

LAUNCH_FILE = "launch.json"


def with_run_to_continue(settings: LaunchSettings) -> LaunchSettings:
    """Settings that name the run that this start continues without having been told so; the same ones for a new run,
    or where `--resume` names it.

    A restarted process takes the run of its launch; with `--auto-resume` it is the newest run of the config. Only runs
    with a complete checkpoint count.
    """
    run_dir = None if settings.evaluate else _run_to_continue(settings)
    return settings if run_dir is None else replace(settings, resume=True, load_path=run_dir)


def _run_to_continue(settings: LaunchSettings) -> Path | None:
    if _restarts() > 0:
        mine = [run for run in _candidates(settings) if _launch_of(run) == launch_id()]
        if mine:
            return mine[0]
    if settings.auto_resume:
        return next(iter(_candidates(settings)), None)
    return None


def note_launch(run_dir: Path, world_size: int) -> None:
    """Writes `launch.json`: what was started, with which versions, by which launcher. For the main process."""
    content = {
        "launch": launch_id(),
        "command": sys.argv,
        "world_size": world_size,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_text_atomically(run_dir / LAUNCH_FILE, json.dumps(content, indent=1) + "\n")


def launch_id() -> str | None:
    """What all starts by one torchrun have in common and others have not; None without torchrun.

    That is the rendezvous id. Where none was given, every torchrun has the same, and the launcher's process counts.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"none on {socket.gethostname()}:{os.getppid()}" if run_id == "none" else run_id


def _restarts() -> int:
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def _candidates(settings: LaunchSettings) -> list[Path]:
    """Runs with a checkpoint that the command line may mean, newest first: the one it resumes, or those of its
    config.
    """
    if settings.resume and settings.load_path:
        path = settings.load_path
        found = [path.parent.parent if path.parent.name == CHECKPOINTS else path]
    elif settings.model_config:
        found = runs(settings.result_path, Path(settings.model_config).stem)
    else:
        found = []
    return [run for run in found if complete_checkpoints(run)]


def _launch_of(run: Path) -> str | None:
    try:
        content: Any = json.loads((run / LAUNCH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("launch") if isinstance(content, dict) else None
