"""`metrics.html`: one self-contained page on a set of samples: scores, grid, nearest training images, classes, overlap.

No script, no external file; every text from outside is escaped. Axes: C channels, H W image, M samples, N references,
K neighbours.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from evaluation.metrics.manifold import ManifoldSettings, overlap
from evaluation.metrics.neighbours import Closeness, Neighbours, closeness, nearest_neighbours, spread, take_images
from rqstack.printable import escaped
from runtime.atomic import write_text_atomically

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
GRID_IMAGES, GRID_COLUMNS = 64, 16
NEAREST_ROWS, FIRST_ROWS, NEIGHBOURS = 6, 4, 5
MAX_QUERIES = 2048
CURVE_K = (1, 2, 3, 5, 10)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ccc; padding: .2em .6em }
td { text-align: right } td:first-child, th { text-align: left } pre { white-space: pre-wrap; word-break: break-all }
img { image-rendering: pixelated; min-width: 48px } .grid img { width: 5.6%; min-width: 0 } .warning { color: #a40000 }
"""


@dataclass(frozen=True)
class ImageSet:
    """Images with their features: row i of the features belongs to the image of `index` i.

    Attributes:
        name: what the page calls them.
        batches: called for the images, uint8, as often as some are shown.
    """

    name: str
    features_NF: Tensor
    batches: Batches


def write_report(
    path: Path, line: Mapping[str, Any], samples: ImageSet, reference: ImageSet, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Writes the page and returns what it found on memorisation, as named numbers.

    Neighbours are looked up for at most 2,048 samples, evenly spread, among all reference images.

    Raises:
        ValueError: fewer than 2 reference images, or features of different networks.
    """
    queries_M = spread(MAX_QUERIES, len(samples.features_NF))
    k = min(NEIGHBOURS, len(reference.features_NF))
    neighbours = nearest_neighbours(samples.features_NF[queries_M], reference.features_NF, k, device)
    close = closeness(neighbours, reference.features_NF, device)
    shown = chosen_rows(neighbours)
    grid = spread(GRID_IMAGES, len(samples.features_NF)).tolist()
    wanted = take_images(samples.batches(), [*grid, *queries_M[shown].tolist()])
    originals = take_images(reference.batches(), neighbours.index_MK[shown].flatten().tolist())
    body = [
        f"<h1>{escaped(samples.name)}</h1>",
        f"<p>{line['num_images']} images against {escaped(reference.name)} ({len(reference.features_NF)} images)</p>",
        scores_table(line),
        warnings_list(line),
        "<h2>Samples</h2>",
        grid_of([wanted[index] for index in grid]),
        "<h2>Nearest training images</h2>",
        closeness_text(close, len(queries_M)),
        neighbour_table(neighbours, shown, queries_M, wanted, originals),
        "<h2>Precision and recall</h2>",
        overlap_section(samples.features_NF, reference.features_NF, device),
        class_tables(line),
        "<h2>Result line</h2>",
        f"<pre>{escaped(json.dumps(line))}</pre>",
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title><style>{STYLE}</style>'
    write_text_atomically(path, f"{page}<body>{''.join(body)}</body></html>\n")
    return {
        "close_share": close.close_share,
        "median_distance": close.median,
        "training_median_distance": close.training_median,
    }


def chosen_rows(neighbours: Neighbours) -> list[int]:
    """The samples whose neighbours are shown: those nearest to a training image, then the first ones."""
    order = neighbours.distance_MK[:, 0].argsort(stable=True).tolist()
    nearest = order[:NEAREST_ROWS]
    return nearest + [row for row in range(len(order)) if row not in nearest][:FIRST_ROWS]


def scores_table(line: Mapping[str, Any]) -> str:
    """All metrics of a result line."""
    rows = [f"<tr><td>{escaped(name)}</td><td>{value:.5g}</td></tr>" for name, value in line["metrics"].items()]
    return f"<table><tr><th>metric</th><th>value</th></tr>{''.join(rows)}</table>"


def warnings_list(line: Mapping[str, Any]) -> str:
    """What makes the numbers less than they seem."""
    return "".join(f'<p class="warning">{escaped(text)}</p>' for text in line.get("warnings", ()))


def grid_of(images: Sequence[Tensor]) -> str:
    """Images (C, H, W) side by side, wrapped into rows."""
    return f'<p class="grid">{"".join(picture(image_CHW) for image_CHW in images)}</p>'


def closeness_text(close: Closeness, num_queries: int) -> str:
    """What the distances say about memorisation."""
    return (
        f"<p>{close.close_share:.1%} of {num_queries} samples are nearer to a training image than 99 % of training "
        f"images are to each other (distance {close.threshold:.4g}); without memorisation that is about 1 %. Median "
        f"distance to the nearest training image: {close.median:.4g} for samples, {close.training_median:.4g} for "
        "training images among themselves. Below: the samples that are nearest to a training image, then the first "
        "samples; each with its nearest training images and their distances.</p>"
    )


def neighbour_table(
    neighbours: Neighbours,
    rows: Sequence[int],
    queries_M: Tensor,
    samples: Mapping[int, Tensor],
    originals: Mapping[int, Tensor],
) -> str:
    """One row for each sample shown: the sample, then its neighbours."""
    lines = []
    for row in rows:
        index = int(queries_M[row])
        pairs = zip(neighbours.index_MK[row].tolist(), neighbours.distance_MK[row].tolist())
        cells = "".join(f"<td>{picture(originals[at])}<br>{at}: {distance:.4g}</td>" for at, distance in pairs)
        lines.append(f"<tr><td>{picture(samples[index])}<br>sample {index}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def overlap_section(features_MF: Tensor, reference_NF: Tensor, device: torch.device | str = "cpu") -> str:
    """Precision over recall for several numbers of neighbours, on at most 2,048 images of either set."""
    few_MF = features_MF[spread(MAX_QUERIES, len(features_MF))]
    few_NF = reference_NF[spread(MAX_QUERIES, len(reference_NF))]
    points = []
    for k in (k for k in CURVE_K if k < min(len(few_MF), len(few_NF))):
        found = overlap(few_MF, few_NF, ManifoldSettings(pr_k=k, dc_k=k), device)
        points.append((k, found.recall, found.precision))
    note = f"{len(few_MF)} samples and {len(few_NF)} reference images, evenly spread; k neighbours decide a ball."
    return f"<p>{note}</p>{overlap_plot(points)}"


def overlap_plot(points: Sequence[tuple[int, float, float]]) -> str:
    """(k, recall, precision) as one inline SVG element."""
    size, margin = 260, 40

    def place(recall: float, precision: float) -> str:
        return f"{margin + recall * size:.1f},{margin + (1 - precision) * size:.1f}"

    parts = [f'<path d="M{margin},{margin}v{size}h{size}" fill="none" stroke="#888"/>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(tick, tick).split(",")
        parts.append(f'<text x="{x}" y="{margin + size + 14}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{margin - 5}" y="{y}" text-anchor="end" dominant-baseline="middle">{tick:g}</text>')
    path = " ".join(place(recall, precision) for _, recall, precision in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#36c"/>')
    for k, recall, precision in points:
        x, y = place(recall, precision).split(",")
        title = f"k {k}: recall {recall:.3f}, precision {precision:.3f}"
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#36c"><title>{title}</title></circle>')
        parts.append(f'<text x="{float(x) + 5:.1f}" y="{float(y) - 5:.1f}">k {k}</text>')
    parts.append(f'<text x="{margin + size / 2}" y="{size + 2 * margin - 8}" text-anchor="middle">recall</text>')
    parts.append(f'<text x="{margin}" y="{margin - 12}" text-anchor="middle">precision</text>')
    width = size + 2 * margin
    return f'<svg viewBox="0 0 {width} {width}" width="{width}" font-size="11">{"".join(parts)}</svg>'


def class_tables(line: Mapping[str, Any]) -> str:
    """The FID of every class, worst first, where the line has them."""
    parts = []
    for name, table in line.get("per_class", {}).items():
        ordered = sorted(table.items(), key=lambda item: -item[1])
        rows = "".join(f"<tr><td>{escaped(str(label))}</td><td>{value:.4g}</td></tr>" for label, value in ordered)
        parts.append(f"<h2>By class</h2><table><tr><th>class</th><th>{escaped(name)}</th></tr>{rows}</table>")
    return "".join(parts)


def picture(image_CHW: Tensor) -> str:
    """A uint8 image as an inline PNG."""
    file = io.BytesIO()
    Image.fromarray(image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="">'
