"""The line of a log interval: what matters now, in the columns there are. Everything else is in the files.

Training and validation call a quantity the same; lists with a number per depth shrink to their mean and their lowest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 4  # numbers of a line
# (Name, what the line calls it), most important first. A line of training has those of the first row that are there,
# all others of the second.
TRAINING = (
    ("loss_total", "loss"),
    ("loss", "loss"),
    ("skipped_steps", "skipped"),
    ("loss_recon", "recon"),
    ("nll", "nll"),
    ("used_fraction", "used"),
    ("accuracy", "accuracy"),
    ("disc_gap", "disc_gap"),
)
MEASURED = (
    ("loss_recon", "recon"),
    ("nll", "nll"),
    ("loss_perceptual", "perceptual"),
    ("unigram_nll", "unigram_nll"),
    ("accuracy", "accuracy"),
    ("used_fraction", "used"),
)
SHARES = ("accuracy", "used_fraction")  # in per cent; a list of one number per depth with the lowest


def interval_line(metrics: Mapping[str, Any], timing: Mapping[str, Any], room: int) -> str:
    """What is said of an interval, without its position: speed, then the numbers that matter, as many as fit.

    Args:
        metrics: plain values by name, without prefix.
        timing: of a line of training `images_per_second`.
        room: columns.
    """
    names = TRAINING if {"loss", "loss_total"} & metrics.keys() else MEASURED
    parts = [f"{_speed(timing['images_per_second'])} img/s"] if "images_per_second" in timing else []
    shown = [f"{label} {text}" for name, label in names if (text := _shown(name, metrics))]
    if not shown:
        shown = [f"{name} {_number(value)}" for name, value in metrics.items() if isinstance(value, (int, float))]
    line = "  ".join(parts)
    for text in shown[:MOST]:
        longer = f"{line}  {text}" if line else text
        if len(longer) <= room:
            line = longer
    return line


def _shown(name: str, metrics: Mapping[str, Any]) -> str:
    """A number in words; empty where it is not there or says nothing."""
    if name == "skipped_steps" and not metrics.get(name):
        return ""
    if name in SHARES and (by_depth := metrics.get(f"{name}_by_depth")):
        lowest = f" min {_percent(min(by_depth))}" if len(by_depth) > 1 else ""
        return f"{_percent(sum(by_depth) / len(by_depth))}{lowest}"
    if metrics.get(name) is None:
        return ""
    return _percent(metrics[name]) if name in SHARES else _number(metrics[name])


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.2g}%"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
