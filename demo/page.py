"""What the demos' pages have in common: curves of a run, its newest pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from runtime.pages.page import embedded_png
from runtime.pages.plots import LinePlot
from runtime.records.metrics_file import METRICS_FILE, read_metrics

Plot = tuple[LinePlot, dict[str, str]]
"""A plot without its curves, and {label: metric} of those."""
STAGE1_PLOTS: list[Plot] = [
    (
        LinePlot("Losses", {}, log_y=True),
        {"reconstruction": "train/loss_recon", "commitment": "train/loss_latent"},
    ),
    (LinePlot("Codebook perplexity per depth", {}), {"depth": "train/perplexity_by_depth"}),
]
STAGE2_PLOTS: list[Plot] = [
    (LinePlot("Loss per depth (soft targets)", {}), {"depth": "train/loss_by_depth"}),
    (LinePlot("Accuracy per depth", {}), {"depth": "train/accuracy_by_depth"}),
]


def curves(run: Path, plots: Sequence[Plot]) -> list[Markup]:
    """What a run logged while training, one element for each plot."""
    lines = read_metrics(run / METRICS_FILE)
    drawn = []
    for plot, names in plots:
        points: dict[str, list[tuple[float, float]]] = {}
        for label, key in names.items():
            for line in lines:
                for name, number in _numbers(label, line.get(key)):
                    points.setdefault(name, []).append((line["step"], number))
        drawn.append(replace(plot, curves=points).svg())
    return drawn


def newest_picture(run: Path, name: str, alt: str) -> Markup:
    """The newest of the pictures `<name>_<step>.png` of a run."""
    return embedded_png(sorted((run / "samples").glob(f"{name}_*.png"))[-1].read_bytes(), alt)


def _numbers(label: str, value: Any) -> list[tuple[str, float]]:
    """A logged value as named numbers: one, one for each depth, or none where a line has no such metric."""
    if isinstance(value, list):
        return [(f"{label} {depth}", number) for depth, number in enumerate(value, start=1)]
    return [] if value is None else [(label, value)]
