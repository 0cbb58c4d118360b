"""`metrics.jsonl`: one JSON object a line, each with the `step` after which it was written.

It has to outlive a kill in the middle of a line, a disk that is full for a while, and whoever else wrote to it: what is
no such line is left out by every reader. When a run is resumed it is moved to a file beside it, and reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.atomic import write_bytes_atomically
from runtime.errors import first_few

METRICS_FILE = "metrics.jsonl"
ASIDE_FILE = "metrics.damaged.jsonl"


class MetricsFile:
    """Appends lines. What a full disk does not take is kept, and written before the next line."""

    def __init__(self, path: Path) -> None:
        # unbuffered, so that it is known how much of a line the disk has taken
        self._file = open(path, "ab", buffering=0)
        self._unwritten = b""
        with suppress(OSError):
            if path.stat().st_size and path.read_bytes()[-1:] != b"\n":
                self._unwritten = b"\n"  # after what another process left

    def write(self, line: Mapping[str, Any]) -> None:
        """One line; OSError where it, or a part of it, has to wait."""
        self._unwritten += json.dumps(line).encode("utf-8") + b"\n"
        while self._unwritten:
            taken = self._file.write(self._unwritten)
            self._unwritten = self._unwritten[taken:]

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


def truncate_metrics(path: Path, last_step: int) -> str | None:
    """Removes the lines of steps after `last_step`. What is no line of metrics, such as a last one that a kill cut
    short, goes to `ASIDE_FILE`.

    Returns:
        A sentence on what was put aside, if anything was.
    """
    kept, aside, numbers = b"", b"", []
    for number, line, read in _lines(path):
        if read is None:
            aside += line + b"\n"
            numbers.append(number)
        elif read["step"] <= last_step:
            kept += line + b"\n"
    if aside:
        with open(path.with_name(ASIDE_FILE), "ab") as file:
            file.write(aside)
    write_bytes_atomically(path, kept)
    if not aside:
        return None
    which = f"line{'s' if len(numbers) > 1 else ''} {first_few(numbers)}"
    return f"{path}: {which} {'are' if len(numbers) > 1 else 'is'} no line of metrics; kept aside in {ASIDE_FILE}"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; damaged and foreign ones are left out."""
    return [read for _, _, read in _lines(Path(path)) if read is not None]


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Number, bytes and content of every line that is not empty; no content where it is no line of metrics."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line, _read_line(line) if number < len(lines) else None


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        read = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) and type(read.get("step")) is int else None
