"""The text demo's pictures: accuracy against guidance scale, and samples under their prompts.

Legend: N images, C channels, H W image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.pages.plots import LinePlot
from sampling.picture_grids import save_image_file, uint8_grid

SHOWN = ("colour", "shape", "size", "axis", "everything")


def draw_sweep(path: Path, sweep: Sequence[Mapping[str, Any]], num_captions: int) -> None:
    """Writes a PNG of the shares found at each scale; the same shares for shuffled captions are dashed.

    Args:
        sweep: `cfg_scale`, `found` and `by_chance` of each scale, as `demo.text.measure` gives them.
        num_captions: behind every point.
    """
    sweep_plot(sweep, num_captions).save(path)


def sweep_plot(sweep: Sequence[Mapping[str, Any]], num_captions: int) -> LinePlot:
    """What `draw_sweep` draws."""
    found = {name: [(line["cfg_scale"], 100 * line["found"][name]) for line in sweep] for name in SHOWN}
    chance = {
        f"{name}, shuffled": [(line["cfg_scale"], 100 * line["by_chance"][name]) for line in sweep] for name in SHOWN
    }
    return LinePlot(
        f"What {num_captions} held-out captions ask for, found in the samples",
        found | chance,
        x_label="guidance scale (dashed: shuffled captions)",
        y_label="%",
        dashed=list(chance),
        points=True,
    )


def draw_prompts(path: Path, prompts: Sequence[str], image_NCHW: Tensor) -> None:
    """Writes a PNG with each prompt above its samples.

    Args:
        image_NCHW: uint8; as many for each prompt, one prompt after the other.
    """
    each = len(image_NCHW) // len(prompts)
    labels = [prompt for prompt in prompts for _ in range(each)]
    save_image_file(uint8_grid(image_NCHW, each, image_labels=labels), path)
