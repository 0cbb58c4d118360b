"""The demo's report: a table for the console, and one self-contained HTML page with curves and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.page import newest_picture, stage1_plots, stage2_plots
from runtime.pages.page import embedded_png, write_page
from sampling.picture_grids import COARSE_TO_FINE

Summary = dict[str, Any]


def depth_rows(summary: Summary) -> list[list[str]]:
    """One row for each number of codes 1..D, under `DEPTH_HEADER`."""
    columns = ("recon_mse_by_depth", "rfid_by_depth", "code_usage_by_depth", "nll_by_depth", "unigram_nll_by_depth")
    rows = []
    for depth, values in enumerate(zip(*(summary[name] for name in columns), strict=True), start=1):
        mse, rfid, usage, nll, unigram = values
        rows.append(
            [
                str(depth),
                f"{mse:.4f}",
                f"{rfid:.2f}",
                f"{usage:.0%}",
                f"{nll:.3f}",
                f"{unigram:.3f}",
                f"{summary['uniform_nll']:.3f}",
            ]
        )
    return rows


DEPTH_HEADER = ["codes", "recon MSE", "rFID*", "codes used", "stage-2 NLL", "unigram NLL", "uniform NLL"]
SCORES: list[tuple[str, Callable[[Summary], str]]] = [
    ("FID* of real validation against real training images (the floor)", lambda s: f"{s['fid_floor']:.2f}"),
    ("FID* of samples", lambda s: f"{s['fid_samples']:.2f}"),
    ("FID* of images from codes drawn by frequency (unigram)", lambda s: f"{s['fid_unigram']:.2f}"),
    ("samples recognised as the digit they were asked for", lambda s: f"{s['sample_accuracy']:.1%}"),
    (
        "seconds: stage 1, stage 2, sampling",
        lambda s: f"{s['seconds_stage1']:.0f}, {s['seconds_stage2']:.0f}, {s['seconds_sampling']:.0f}",
    ),
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
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        depth_header=DEPTH_HEADER,
        depth_rows=depth_rows(summary),
        scores=[[label, show(summary)] for label, show in SCORES],
        footnote=footnote(summary),
        samples=embedded_png(samples.read_bytes(), "ten columns of generated digits, one for each class"),
        reconstructions=newest_picture(
            stage1, COARSE_TO_FINE, "digits, and below each what its first 1, 2, 3 and 4 codes decode to"
        ),
        stage1_plots=stage1_plots(stage1),
        stage2_plots=stage2_plots(stage2),
    )
