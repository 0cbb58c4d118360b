"""`threads_at_exit.py SCRIPT ...` runs an entry script and prints which threads are left when Python exits (Linux)."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
from pathlib import Path


def report() -> None:
    names = sorted({(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()})
    sys.stdout.write(f"rank {os.environ['RANK']} ends with threads {' '.join(names)}\n")


if __name__ == "__main__":
    if Path("/proc/self/task").is_dir():
        atexit.register(report)
    script = next(word for word in sys.argv[1:] if word.endswith(".py"))  # a launcher may put its own flag in front
    sys.argv = [script, *(word for word in sys.argv[1:] if word != script)]
    runpy.run_path(script, run_name="__main__")
