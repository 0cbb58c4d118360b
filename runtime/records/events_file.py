"""`events.jsonl` of a run: what happened at a moment, with its step and its time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from runtime.records.metrics_file import read_metrics

EVENTS_FILE = "events.jsonl"


def write_event(run_dir: Path, kind: str, text: str, step: int) -> None:
    """Adds a line.

    Args:
        kind: a word or two: `resume`, `spike`, ...
        text: what a person should know.
        step: when.
    """
    line = {"step": step, "time": round(time.time(), 3), "kind": kind, "text": text}
    with open(run_dir / EVENTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The lines; none of a run that has no such file."""
    path = run_dir / EVENTS_FILE
    return read_metrics(path) if path.is_file() else []
