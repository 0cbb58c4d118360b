"""The demo's report: a table for the console, and one self-contained HTML page with curves and pictures."""

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo.curves import line_plot
from runtime.atomic import write_text_atomically
from runtime.runlog import METRICS_FILE, read_metrics

Summary = dict[str, Any]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: .25em .7em; text-align: right }
th:first-child, td:first-child { text-align: left }
img { image-rendering: pixelated; max-width: 100%; border: 1px solid #ccc }
.curves { display: flex; flex-wrap: wrap; gap: 12px }
"""


def depth_rows(summary: Summary) -> list[list[str]]:
    """One row for each number of codes 1..D, under `DEPTH_HEADER`."""
    columns = ("recon_mse_by_depth", "rfid_by_depth", "code_usage_by_depth", "nll_by_depth", "unigram_nll_by_depth")
    rows = []
    for depth, values in enumerate(zip(*(summary[name] for name in columns), strict=True), start=1):
        mse, rfid, usage, nll, unigram = values
        rows.append([str(depth), f"{mse:.4f}", f"{rfid:.2f}", f"{usage:.0%}", f"{nll:.3f}", f"{unigram:.3f}",
                     f"{summary['uniform_nll']:.3f}"])
    return rows


DEPTH_HEADER = ["codes", "recon MSE", "rFID*", "codes used", "stage-2 NLL", "unigram NLL", "uniform NLL"]
SCORES: list[tuple[str, Callable[[Summary], str]]] = [
    ("FID* of real validation against real training images (the floor)", lambda s: f"{s['fid_floor']:.2f}"),
    ("FID* of samples", lambda s: f"{s['fid_samples']:.2f}"),
    ("FID* of images from codes drawn by frequency (unigram)", lambda s: f"{s['fid_unigram']:.2f}"),
    ("samples recognised as the digit they were asked for", lambda s: f"{s['sample_accuracy']:.1%}"),
    ("seconds: stage 1, stage 2, sampling",
     lambda s: f"{s['seconds_stage1']:.0f}, {s['seconds_stage2']:.0f}, {s['seconds_sampling']:.0f}"),
]


def footnote(summary: Summary) -> str:
    """What the reader must know about the distances."""
    return (
        "* distances between features of a small classifier trained on the real training digits, not of the Inception "
        "network: not comparable with published FID. Fewer images give a larger distance: the floor has "
        f"{summary['num_validation']} images, the two rows below it {summary['num_samples']}."
    )


def print_table(summary: Summary) -> None:
    """The table that ends the demo."""
    rows = [DEPTH_HEADER, *depth_rows(summary)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(DEPTH_HEADER))]
    print()
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    width = max(len(label) for label, _ in SCORES)
    print()
    for label, show in SCORES:
        print(f"{label:<{width}}  {show(summary)}")
    print(f"\n{footnote(summary)}")


def write_report(path: Path, summary: Summary, stage1: Path, stage2: Path, samples: Path) -> None:
    """Writes the HTML page.

    Args:
        summary: the numbers of `demo.measure`, with times.
        stage1, stage2: run directories, whose curves and newest pictures are shown.
        samples: the grid of samples, one column for each class.
    """
    body = [
        "<h1>Two-stage image generation with residual quantization, on digits</h1>",
        _table(DEPTH_HEADER, depth_rows(summary)),
        _table(["score", "value"], [[label, show(summary)] for label, show in SCORES]),
        f"<p>{footnote(summary)}</p>",
        "<h2>Samples</h2><p>Column c: ten draws for class c.</p>", _picture(samples),
        "<h2>Reconstructions from coarse to fine</h2><p>First row: validation images; below: from the first code, the "
        "first two, ...</p>", _newest_picture(stage1, "reconstruction_coarse_to_fine"),
        "<h2>Stage 1</h2>", _curves(stage1, STAGE1_PLOTS),
        "<h2>Stage 2</h2>", _curves(stage2, STAGE2_PLOTS),
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Demo</title><style>{STYLE}</style>'
    write_text_atomically(path, f"{page}<body>{''.join(body)}</body></html>\n")


STAGE1_PLOTS = [
    ("Losses", {"reconstruction": "train/loss_recon", "commitment": "train/loss_latent"}, True),
    ("Codebook perplexity per depth", {"depth": "train/perplexity_by_depth"}, False),
]
STAGE2_PLOTS = [
    ("Loss per depth (soft targets)", {f"depth {d + 1}": f"train/loss_depth_{d}" for d in range(4)}, False),
    ("Accuracy per depth", {f"depth {d + 1}": f"train/accuracy_depth_{d}" for d in range(4)}, False),
]


def _curves(run: Path, plots: Sequence[tuple[str, dict[str, str], bool]]) -> str:
    lines = read_metrics(run / METRICS_FILE)
    svgs = []
    for title, names, log_y in plots:
        curves: dict[str, list[tuple[float, float]]] = {}
        for label, key in names.items():
            for line in lines:
                for name, number in _numbers(label, line.get(key)):
                    curves.setdefault(name, []).append((line["step"], number))
        svgs.append(line_plot(title, curves, log_y))
    return f'<div class="curves">{"".join(svgs)}</div>'


def _numbers(label: str, value: Any) -> list[tuple[str, float]]:
    """A logged value as named numbers: one, one for each depth, or none where a line has no such metric."""
    if isinstance(value, list):
        return [(f"{label} {depth}", number) for depth, number in enumerate(value, start=1)]
    return [] if value is None else [(label, value)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _newest_picture(run: Path, name: str) -> str:
    return _picture(sorted((run / "samples").glob(f"{name}_*.png"))[-1])


def _picture(file: Path) -> str:
    encoded = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img src="data:image/png;base64,{encoded}" alt="{html.escape(file.stem)}"></p>'
