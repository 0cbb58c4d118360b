"""Draws the pictures of the documents again from the committed results: `python -m benchmarks.pictures`.

The figures of the paper's claims belong to `python -m benchmarks.paper_claims --report`.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.quantizer_comparison import draw
from runtime.errors import exit_on_user_error, say
from runtime.pages.picture_note import COMMAND, sign_picture

RESULTS, DOCS = Path("benchmarks/results"), Path("docs")


def main() -> None:
    """Every picture of a benchmark; each says which command made it."""
    path = DOCS / "quantizer_comparison.png"
    draw(path, json.loads((RESULTS / "quantizer_comparison.json").read_text(encoding="utf-8")))
    sign_picture(path, {COMMAND: "python -m benchmarks.pictures"})
    say(str(path))


if __name__ == "__main__":
    with exit_on_user_error(OSError):
        main()
