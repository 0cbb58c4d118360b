"""Parts of a report: one self-contained HTML page with tables, curves and pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.curves import line_plot
from rqstack.printable import escaped
from runtime.atomic import write_text_atomically
from runtime.runlog import METRICS_FILE, read_metrics

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: .25em .7em; text-align: right }
th:first-child, td:first-child { text-align: left }
img { image-rendering: pixelated; max-width: 100%; border: 1px solid #ccc }
.curves { display: flex; flex-wrap: wrap; gap: 12px }
"""

Plot = tuple[str, dict[str, str], bool]
STAGE1_PLOTS: list[Plot] = [
    ("Losses", {"reconstruction": "train/loss_recon", "commitment": "train/loss_latent"}, True),
    ("Codebook perplexity per depth", {"depth": "train/perplexity_by_depth"}, False),
]


def stage2_plots(depth: int) -> list[Plot]:
    """Plots of a stage-2 run with `depth` codes per position."""
    return [
        ("Loss per depth (soft targets)", {f"depth {d + 1}": f"train/loss_depth_{d}" for d in range(depth)}, False),
        ("Accuracy per depth", {f"depth {d + 1}": f"train/accuracy_depth_{d}" for d in range(depth)}, False),
    ]


def write_page(path: Path, title: str, body: Sequence[str]) -> None:
    """Writes the page whose parts are `body`."""
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escaped(title)}</title>'
    write_text_atomically(path, f"{page}<style>{STYLE}</style><body>{''.join(body)}</body></html>\n")


def curves(run: Path, plots: Sequence[Plot]) -> str:
    """What a run logged while training: one plot for each (title, {label: metric}, log scale)."""
    lines = read_metrics(run / METRICS_FILE)
    svgs = []
    for title, names, log_y in plots:
        points: dict[str, list[tuple[float, float]]] = {}
        for label, key in names.items():
            for line in lines:
                for name, number in _numbers(label, line.get(key)):
                    points.setdefault(name, []).append((line["step"], number))
        svgs.append(line_plot(title, points, log_y))
    return f'<div class="curves">{"".join(svgs)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def newest_picture(run: Path, name: str) -> str:
    """The newest of the pictures `<name>_<step>.png` of a run."""
    return picture(sorted((run / "samples").glob(f"{name}_*.png"))[-1])


def picture(file: Path) -> str:
    """A picture, inside the page."""
    encoded = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img src="data:image/png;base64,{encoded}" alt="{escaped(file.stem)}"></p>'


def _numbers(label: str, value: Any) -> list[tuple[str, float]]:
    """A logged value as named numbers: one, one for each depth, or none where a line has no such metric."""
    if isinstance(value, list):
        return [(f"{label} {depth}", number) for depth, number in enumerate(value, start=1)]
    return [] if value is None else [(label, value)]
