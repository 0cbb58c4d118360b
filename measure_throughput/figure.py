"""The published figure as a bar chart: milliseconds per sample of every model and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.pages.plots import BarPanel, save_bars


def draw_figure(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """One bar per row, the autoregressive part dark, the decoding to pixels light. A row with an error has no bar."""
    panel = BarPanel(
        "milliseconds per sample",
        [row.get("ms_per_sample") for row in rows],
        "{:.3g} ms",
        part=[row.get("ms_per_sample_ar") for row in rows],
        part_names=("codes", "pixels"),
        missing=[row.get("error", "-") for row in rows],
    )
    save_bars(path, title, [f"{row['case']}  batch {row['batch_size']}" for row in rows], [panel])
