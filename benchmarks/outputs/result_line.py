"""The one JSON line with which a benchmark ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.atomic import write_text_atomically


def end_with_line(facts: Mapping[str, Any], output: Path | None) -> None:
    """Prints the facts as one line, after writing it to a file where one is asked for."""
    line = json.dumps(facts)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(output, line + "\n")
    print(line)
