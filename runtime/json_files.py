"""JSON files that a run wrote, read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.errors import UserError, one_line


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it cannot be read, is not JSON, is nested too deeply, or is no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not what a checkpoint writes")
    return content
