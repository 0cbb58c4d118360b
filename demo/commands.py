"""The demos' steps: the commands a user would type, run one after the other."""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.rundir import latest_run


def run(command: Sequence[str]) -> float:
    """Runs one script with this interpreter and returns its seconds; a failure ends the demo with its exit code."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    finished = subprocess.run([sys.executable, *command], check=False)
    if finished.returncode:
        raise SystemExit(finished.returncode)
    return time.perf_counter() - started


def run_of(results: Path, name: str) -> Path:
    """The run directory that a step which succeeded has made."""
    made = latest_run(results, name)
    assert made is not None
    return made
