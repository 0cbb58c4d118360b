"""The text demo's pictures, drawn with Pillow alone: accuracy against guidance scale, and samples beside their prompts.

Legend: N images, C channels, H W image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from demo.curves import COLORS

INK, PALE = (32, 32, 32), (225, 225, 225)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 64, 130, 44, 52
SHOWN = ("colour", "shape", "size", "axis", "everything")
ENLARGE, GAP, LINE = 2, 4, 22
_DASH = 6


def draw_sweep(path: Path, sweep: Sequence[Mapping[str, Any]], num_captions: int) -> None:
    """Writes a PNG of the shares found at each scale; the same shares for shuffled captions are dashed.

    Args:
        sweep: `cfg_scale`, `found` and `by_chance` of each scale, as `demo.text.measure` gives them.
        num_captions: behind every point.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    scales = [line["cfg_scale"] for line in sweep]
    low, high = min(scales), max(max(scales), min(scales) + 1)

    def place(scale: float, share: float) -> tuple[float, float]:
        across = (scale - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    draw.text((LEFT, 12), f"What {num_captions} held-out captions ask for, found in the samples", INK, font)
    for percent in range(0, 101, 20):
        x, y = place(low, percent / 100)
        draw.line([(x, y), place(high, percent / 100)], PALE)
        draw.text((x - 8, y), f"{percent} %", INK, font, anchor="rm")
    for scale in scales:
        draw.text((place(scale, 0)[0], HEIGHT - BOTTOM + 8), f"{scale:g}", INK, font, anchor="mt")
    draw.text(
        ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), "guidance scale (dashed: shuffled captions)", INK, font, anchor="mb"
    )
    for number, name in enumerate(SHOWN):
        draw.text((WIDTH - RIGHT + 14, TOP + 20 * number), name, COLORS[number], font)
        found = [place(line["cfg_scale"], line["found"][name]) for line in sweep]
        draw.line(found, COLORS[number], 2)
        for x, y in found:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), COLORS[number])
        _dashed(draw, [place(line["cfg_scale"], line["by_chance"][name]) for line in sweep], COLORS[number])
    image.save(path)


def draw_prompts(path: Path, prompts: Sequence[str], image_NCHW: Tensor) -> None:
    """Writes a PNG with each prompt above its samples.

    Args:
        image_NCHW: uint8; as many for each prompt, one prompt after the other.
    """
    each, (height, width) = len(image_NCHW) // len(prompts), image_NCHW.shape[2:]
    cell_height, cell_width = height * ENLARGE + GAP, width * ENLARGE + GAP
    row = LINE + cell_height + GAP
    image = Image.new("RGB", (each * cell_width + GAP, len(prompts) * row), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    for number, prompt in enumerate(prompts):
        draw.text((GAP, number * row + 3), prompt, INK, font)
        for column, image_CHW in enumerate(image_NCHW[number * each : (number + 1) * each]):
            sample = Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())
            sample = sample.resize((width * ENLARGE, height * ENLARGE), Image.Resampling.NEAREST)
            image.paste(sample, (GAP + column * cell_width, number * row + LINE))
    image.save(path)


def _dashed(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str) -> None:
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        steps = max(1, round(abs(x1 - x0) / _DASH))
        for step in range(0, steps, 2):
            begin, end = step / steps, min(1.0, (step + 1) / steps)
            draw.line(
                [(x0 + (x1 - x0) * begin, y0 + (y1 - y0) * begin), (x0 + (x1 - x0) * end, y0 + (y1 - y0) * end)], colour
            )
