"""`launch.json` of a run directory: what was started, when, by which command, from which commit of the code."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

LAUNCH_FILE = "launch.json"
STARTS = "starts"  # under this name it holds every start of the run


def read_launch(run: Path) -> dict[str, Any]:
    """The content of `launch.json`; empty where there is none."""
    try:
        content: Any = json.loads((run / LAUNCH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def this_start(world_size: int) -> dict[str, Any]:
    """What is recorded of the start of this process."""
    return {
        "time": round(time.time(), 3),
        "command": sys.argv,
        "world_size": world_size,
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the code, with a mark where files have been changed since; None where git does not know."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
