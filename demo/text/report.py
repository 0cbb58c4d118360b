"""The text demo's report: a table for the console, and one self-contained HTML page."""

from pathlib import Path
from typing import Any

from demo.page import newest_picture, stage1_plots, stage2_plots
from runtime.pages.page import embedded_png, write_page
from sampling.picture_grids import COARSE_TO_FINE

Summary = dict[str, Any]
KINDS = ("colour", "shape", "size", "axis", "everything")
HEADER = ["share of captions' words found by the judge", *KINDS]


def rows(summary: Summary) -> list[list[str]]:
    """One row for each kind of image, under `HEADER`."""
    named = [("real validation images", summary["real_images"]), ("their reconstructions", summary["reconstructions"])]
    named += [(f"samples, guidance scale {line['cfg_scale']:g}", line["found"]) for line in summary["sweep"]]
    named.append((f"chance: shuffled captions, scale {summary['cfg_scale']:g}", summary["by_chance"]))
    return [[name, *(f"{shares[kind]:.1%}" for kind in KINDS)] for name, shares in named]


def footnote(summary: Summary) -> str:
    """What the reader must know about the shares."""
    return (
        f"{summary['num_captions']} captions that no training image had, drawn once at each scale; "
        f"{summary['num_real_images']} real images. The judge is a small network trained on real training images. "
        "colour, shape, size: of both objects, each at the place the caption gives it; axis: side by side or one above "
        f"the other; everything: all seven answers right. The scale to quote, "
        f"chosen beforehand: {summary['cfg_scale']:g}."
    )


def print_table(summary: Summary) -> None:
    """The table that ends the demo."""
    lines = [HEADER, *rows(summary)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    print()
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))]))
    print(f"\n{footnote(summary)}\n\n{times(summary)}")


def times(summary: Summary) -> str:
    """What the demo took."""
    return (
        f"seconds: stage 1 {summary['seconds_stage1']:.0f}, stage 2 {summary['seconds_stage2']:.0f}, judge and samples "
        f"{summary['seconds_measure']:.0f}; processor time of all: {summary['cpu_seconds']:.0f} s"
    )


def write_report(path: Path, summary: Summary, stage1: Path, stage2: Path, prompts: Path, sweep: Path) -> None:
    """Writes the HTML page.

    Args:
        summary: the numbers of `demo.text.measure`, with times.
        stage1, stage2: run directories, whose curves and newest pictures are shown.
        prompts, sweep: the pictures of `demo.text.pictures`.
    """
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        scale=summary["cfg_scale"],
        prompts=embedded_png(prompts.read_bytes(), "generated pictures under the captions that they were drawn for"),
        header=HEADER,
        rows=rows(summary),
        footnote=footnote(summary),
        sweep=embedded_png(sweep.read_bytes(), "shares of what captions ask for that samples show, over the scale"),
        times=times(summary),
        reconstructions=newest_picture(
            stage1, COARSE_TO_FINE, "pictures, and below each what its first code and both of its codes decode to"
        ),
        stage1_plots=stage1_plots(stage1),
        stage2_plots=stage2_plots(stage2),
    )
