"""The result lines of the acceptance: one JSON object per item and try, appended and on disk before the next begins."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu.running import ROOT, Outcome

CODE = ("*.py", "*.yaml", "*.cpp", "*.h")
NOT_CODE = {"tests", "docs", "notebooks"}
IDENTITY = ("device", "tiny", "commit", "code")  # what a line must share with a run to stand for it


def source_state() -> dict[str, Any]:
    """The commit, whether the checkout differs from it, and a digest of the code: a copy may come without git."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for file in sorted(ROOT.rglob(pattern)):
            parts = file.relative_to(ROOT).parts
            if parts[0] not in NOT_CODE and not any(part.startswith(".") for part in parts):
                digest.update("/".join(parts).encode() + b"\0" + file.read_bytes())
    commit = _git("rev-parse", "HEAD")
    changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes), "code": digest.hexdigest()[:12]}


def _git(*words: str) -> str | None:
    try:
        ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


class ResultLines:
    """The file of result lines, and those in it that stand for this machine and code.

    Args:
        path: made with its folder where it is not there.
        identity: what every line says of the machine and the code.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.latest = latest_lines(path, identity)

    def is_done(self, item: str) -> bool:
        """Whether the item ran and was right."""
        return bool(self.latest.get(item, {}).get("ok"))

    def append(self, item: str, outcome: Outcome) -> dict[str, Any]:
        """Writes the line of an item, and returns it."""
        line = {
            "item": item,
            "ok": outcome.ok,
            "result": outcome.result,
            "error": "; ".join(outcome.wrong) or None,
            "seconds": outcome.seconds,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **self.identity,
        }
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")  # a line that was cut off stays alone
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.latest[item] = line
        return line


def latest_lines(path: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The last line of every item, of those that say the same of machine and code."""
    ours = (line for line in read_lines(path) if all(line.get(name) == identity.get(name) for name in IDENTITY))
    return {line["item"]: line for line in ours}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:  # cut off while it was written
                continue
    return [line for line in lines if isinstance(line, dict) and "item" in line]
