"""What the numbers of a run are called: one name for one quantity, in training and validation, on console and disk.

Numbers of one depth that a step gives (`loss_depth_0`, ...) are one list with their mean: `loss_by_depth` and `loss`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.records.metrics_file import METRICS_FILE, read_metrics

_OF_ONE_DEPTH = re.compile(r"(.+)_depth_(\d+)")
FORMER_NAMES = {f"{prefix}/lpips": f"{prefix}/loss_perceptual" for prefix in ("train", "val", "val_ema")}


def folded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with the numbers of single depths as lists, and the mean of each list where it has no name yet."""
    found: dict[str, Any] = {}
    depths: dict[str, dict[int, Any]] = {}
    for name, value in metrics.items():
        of_one = _OF_ONE_DEPTH.fullmatch(name)
        if of_one is None:
            found[name] = value
        else:
            depths.setdefault(of_one[1], {})[int(of_one[2])] = value
    for name, by_depth in depths.items():
        values = [by_depth[depth] for depth in sorted(by_depth)]
        if name not in found and all(value is not None for value in values):
            found[name] = sum(values) / len(values)
        found[f"{name}_by_depth"] = values
    return found


def read_run(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics under the names of today, whichever release wrote them; maybe none."""
    path = run_dir / METRICS_FILE
    lines = read_metrics(path) if path.is_file() else []
    return [folded({FORMER_NAMES.get(name, name): value for name, value in line.items()}) for line in lines]
