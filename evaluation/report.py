"""`metrics.html`: one self-contained page on a set of samples: scores, overlap, grid, nearest training images, classes.

Axes: C channels, H W image, M samples, N references, K neighbours.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from evaluation.metrics.manifold import ManifoldSettings, overlap
from evaluation.metrics.neighbours import Neighbours, Taken, closeness, nearest_neighbours, spread, take_images
from evaluation.protocol import check_uint8_images
from runtime.pages.page import embedded_png, write_page
from runtime.pages.plots import LinePlot

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
GRID_IMAGES = 64
NEAREST_ROWS, FIRST_ROWS, NEIGHBOURS = 6, 4, 5
MAX_QUERIES = 2048
CURVE_K = (1, 2, 3, 5, 10)
SHOWN_SIDE = 128  # pixels of an image on the page, at least


@dataclass(frozen=True)
class ImageSet:
    """Images with their features: row i of the features belongs to the image of `index` i.

    Attributes:
        name: what the page calls them.
        batches: called for the images, uint8, as often as some are shown.
        class_names: of their labels; those without one are shown as `class 7`.
    """

    name: str
    features_NF: Tensor
    batches: Batches
    class_names: Sequence[str] = ()

    def class_of(self, taken: Taken) -> str:
        """What the class of an image is called; nothing for one without."""
        if taken.label is None:
            return ""
        return self.class_names[taken.label] if taken.label < len(self.class_names) else f"class {taken.label}"


def write_report(
    path: Path,
    line: Mapping[str, Any],
    samples: ImageSet,
    reference: ImageSet,
    device: torch.device | str = "cpu",
    class_names: Sequence[str] = (),
) -> dict[str, float]:
    """Writes the page and returns what it found on memorisation, as named numbers.

    Neighbours are looked up for at most 2,048 samples, evenly spread, among all reference images. Classes are called by
    their number and, where `class_names` has one, their name.

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
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        samples=samples.name,
        reference=reference.name,
        line=line,
        num_reference=len(reference.features_NF),
        scores=[[name, f"{value:.5g}"] for name, value in line["metrics"].items()],
        warnings=line.get("warnings", ()),
        overlap=overlap_plot(samples.features_NF, reference.features_NF, device).svg(),
        overlap_images=(min(MAX_QUERIES, len(samples.features_NF)), min(MAX_QUERIES, len(reference.features_NF))),
        grid=[(picture(wanted[index].image_CHW, f"sample {index}"), samples.class_of(wanted[index])) for index in grid],
        closeness=close,
        num_queries=len(queries_M),
        neighbours=neighbour_rows(neighbours, shown, queries_M, wanted, originals),
        classes=class_tables(line, class_names),
        json=json.dumps(line, indent=1).splitlines(),
    )
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


def neighbour_rows(
    neighbours: Neighbours,
    rows: Sequence[int],
    queries_M: Tensor,
    samples: Mapping[int, Taken],
    originals: Mapping[int, Taken],
) -> list[list[tuple[Markup, str]]]:
    """For each sample shown: its picture with a caption, then those of its neighbours."""
    found = []
    for row in rows:
        index = int(queries_M[row])
        pairs = zip(neighbours.index_MK[row].tolist(), neighbours.distance_MK[row].tolist())
        cells = [
            (picture(originals[at].image_CHW, f"training image {at}"), f"{at}: {distance:.4g}")
            for at, distance in pairs
        ]
        found.append([(picture(samples[index].image_CHW, f"sample {index}"), f"sample {index}"), *cells])
    return found


def overlap_plot(features_MF: Tensor, reference_NF: Tensor, device: torch.device | str = "cpu") -> LinePlot:
    """Precision over recall for several numbers of neighbours, on at most `MAX_QUERIES` images of either set."""
    few_MF = features_MF[spread(MAX_QUERIES, len(features_MF))]
    few_NF = reference_NF[spread(MAX_QUERIES, len(reference_NF))]
    points = {}
    for k in (k for k in CURVE_K if k < min(len(few_MF), len(few_NF))):
        found = overlap(few_MF, few_NF, ManifoldSettings(pr_k=k, dc_k=k), device)
        points[f"k = {k}"] = [(found.recall, found.precision)]
    return LinePlot("Precision over recall", points, x_label="recall", y_label="precision", points=True, square=True)


def class_tables(line: Mapping[str, Any], class_names: Sequence[str] = ()) -> list[tuple[str, list[tuple[str, str]]]]:
    """(Name of the distance, (class, its value) worst first) of every table of classes that the line has."""
    tables = []
    for name, table in line.get("per_class", {}).items():
        worst_first = sorted(table.items(), key=lambda item: -item[1])
        tables.append((name, [(_class_word(str(label), class_names), f"{value:.4g}") for label, value in worst_first]))
    return tables


def _class_word(label: str, class_names: Sequence[str]) -> str:
    named = label.isdecimal() and int(label) < len(class_names) and class_names[int(label)] != label
    return f"{label} {class_names[int(label)]}" if named else label


def picture(image_CHW: Tensor, alt: str) -> Markup:
    """A uint8 image as an inline PNG, its pixels as they are (RGBA on white), shown at least `SHOWN_SIDE` wide."""
    file = io.BytesIO()
    rgb_CHW = check_uint8_images(image_CHW.unsqueeze(0))[0]
    Image.fromarray(rgb_CHW.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    width = image_CHW.shape[-1]
    return embedded_png(file.getvalue(), alt, width * -(-SHOWN_SIDE // width))
