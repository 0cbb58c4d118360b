"""The steps of a recipe: commands a user would type. What is done is not done again, a training goes on.

`steps.json` in the folder of a recipe says of every step that ended how often it was started, and the seconds and the
peak memory of the last start.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.atomic import write_text_atomically
from runtime.errors import UserError
from runtime.processes.system import peak_memory_bytes
from runtime.rundir import latest_run


class Steps:
    """The steps of one recipe.

    Args:
        folder: of everything that it makes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "steps.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict[str, Any]] = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        )

    def command(self, name: str, words: Sequence[str]) -> None:
        """Runs a command of this repository with this interpreter; UserError where it fails."""
        self.call(name, lambda: self._run(words))

    def call(self, name: str, action: Callable[[], Any]) -> None:
        """Does something once; what is done stays done when the recipe is started again."""
        step = self.known.setdefault(name, {"starts": 0, "done": False})
        if step["done"]:
            print(f"{name}: done before", flush=True)
            return
        step["starts"] += 1
        self._write()
        started = time.perf_counter()
        action()
        step |= {"done": True, "seconds": round(time.perf_counter() - started, 1)}
        peaks = [peak for peak in (peak_memory_bytes(), peak_memory_bytes(children=True)) if peak is not None]
        if peaks:
            step["peak_mb"] = round(max(peaks) / 2**20)
        self._write()

    def run_dir(self, name: str, config: str) -> Path:
        """The run that a training step has made."""
        made = latest_run(self.folder / name, Path(config).stem)
        assert made is not None, f"{name} has run"
        return made

    @property
    def minutes(self) -> float:
        """Of all steps together."""
        return sum(step.get("seconds", 0.0) for step in self.known.values()) / 60

    @property
    def peak_gb(self) -> float:
        """The largest process."""
        return max((step.get("peak_mb", 0) for step in self.known.values()), default=0) / 1024

    @property
    def was_interrupted(self) -> bool:
        """Whether a step was started more than once: its seconds are then those of the last start."""
        return any(step["starts"] > 1 for step in self.known.values())

    def _run(self, words: Sequence[str]) -> None:
        print(f"\n$ python {shlex.join(words)}", flush=True)
        code = subprocess.run([sys.executable, *words], check=False).returncode
        if code:
            raise UserError(f"{words[0]} ended with exit code {code}: the recipe goes on from here when started again")

    def _write(self) -> None:
        write_text_atomically(self.path, json.dumps(self.known, indent=2) + "\n")
