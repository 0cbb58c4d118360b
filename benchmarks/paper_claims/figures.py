"""A figure per claim: a panel per number, a bar (or a point of a curve) per row, a dot per seed."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.paper_claims.claims import Claim
from benchmarks.paper_claims.tables import Finding

BAR, DOT = "#9db8d9", "#1f3f6e"
COMMAND = "python -m benchmarks.paper_claims --report"  # kept in the file
PANELS = 3  # columns of the table that are drawn


def draw_figure(path: Path, letter: str, claim: Claim, finding: Finding) -> bool:
    """Writes a PNG; False where fewer than two rows have run: there is nothing to compare."""
    rows = {row: cells for row, cells in finding.numbers.items() if any(cells.values())}
    columns = [name for name in claim.columns if any(cells[name] for cells in rows.values())][:PANELS]
    if len(rows) < 2:
        return False
    # here, because it takes a second to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(columns) + 1.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), number + 1)
        shown = {row: cells[name] for row, cells in rows.items() if cells[name]}
        means = [statistics.mean(values) for values in shown.values()]
        places = range(len(shown))
        if claim.lines:
            axes.plot(places, means, color=BAR, linewidth=2)
        else:
            axes.bar(places, means, color=BAR)
        for place, values in zip(places, shown.values(), strict=True):
            axes.plot([place] * len(values), values, "o", color=DOT, markersize=4)
        axes.set_xticks(list(places), list(shown), rotation=30 if max(map(len, shown)) > 4 else 0, ha="right")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(claim.row_name)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"({letter}) Claim: {claim.says}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None, "Command": COMMAND})
    return True
