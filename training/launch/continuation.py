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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runtime.atomic import write_text_atomically
from runtime.config import composed_values
from runtime.preemption import LAUNCHER_VARIABLE
from runtime.rundir import runs
from runtime.step_directories import CHECKPOINTS
from sampling.recorded_paths import TYPED
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.launch.flags import LaunchSettings
from training.launch.resume_rules import flattened, settings_of
from training.launch_record import LAUNCH_FILE, STARTS, read_launch, this_start

GIVEN = "model_config"  # under this name it holds what the -m file said


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


def note_launch(run_dir: Path, world_size: int, model_config: str | None, typed: Mapping[str, Any]) -> None:
    """Writes `launch.json`: what was started, with which versions, by which launcher. For the main process.

    What the -m file said when the run began, and the paths that were typed, stay there when it is started again.
    """
    before = read_launch(run_dir)
    content = {
        "launch": launch_id(),
        "command": sys.argv,
        "world_size": world_size,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        GIVEN: before.get(GIVEN) or _given(model_config),
        TYPED: {**(before.get(TYPED) or {}), **typed},
        STARTS: [*(before.get(STARTS) or []), this_start(world_size)],
    }
    write_text_atomically(run_dir / LAUNCH_FILE, json.dumps(content, indent=1) + "\n")


def launch_id() -> str | None:
    """What all starts by one torchrun have in common and others have not; None without torchrun.

    That is the rendezvous id. Where none was given, every torchrun has the same, and the launcher's process counts.
    """
    run_id = os.environ.get(LAUNCHER_VARIABLE)
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
    return read_launch(run).get("launch")


def typed_by(run_dir: Path) -> dict[str, Any]:
    """The paths of a run as they were typed, by key."""
    return read_launch(run_dir).get(TYPED) or {}


def edits(run_dir: Path, model_config: str | None, config: Any) -> list[str]:
    """What the -m file says now, did not when the run began, and is not what the run does: `key=value`, in order."""
    then = read_launch(run_dir).get(GIVEN)
    if not model_config or not isinstance(then, dict) or not Path(model_config).is_file():
        return []
    now, does = json.loads(json.dumps(_given(model_config))), json.loads(json.dumps(dict(settings_of(config))))
    keys = [*now, *(key for key in then if key not in now)]
    return [
        f"{key}={now[key]}" if key in now else f"no {key}"
        for key in keys
        if now.get(key) != then.get(key) and not (key in now and key in does and does[key] == now[key])
    ]


def _given(model_config: str | None) -> dict[str, Any] | None:
    return flattened(composed_values(model_config)) if model_config else None
