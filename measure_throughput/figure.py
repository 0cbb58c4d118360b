"""The published figure as a bar chart: milliseconds per sample of every model and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, ROW, LEFT, RIGHT, TOP = 900, 34, 260, 110, 60
AUTOREGRESSIVE, PIXELS, TEXT, LINE = (52, 101, 164), (173, 199, 232), (30, 30, 30), (200, 200, 200)


def draw_figure(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """One bar per row, the autoregressive part dark, the decoding to pixels light. A row with an error has no bar."""
    image = Image.new("RGB", (WIDTH, TOP + ROW * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14)
    draw.text((12, 10), title, fill=TEXT, font=font)
    _legend(draw, font)
    longest = max((row["ms_per_sample"] for row in rows if "error" not in row), default=1.0)
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        draw.text((12, y + 6), f"{row['case']}  batch {row['batch_size']}", fill=TEXT, font=font)
        draw.line([(LEFT, y), (LEFT, y + ROW)], fill=LINE)
        if "error" in row:
            draw.text((LEFT + 8, y + 6), row["error"], fill=TEXT, font=font)
            continue
        scale = (WIDTH - LEFT - RIGHT) / longest
        middle, end = (LEFT + round(scale * row[name]) for name in ("ms_per_sample_ar", "ms_per_sample"))
        draw.rectangle([LEFT, y + 5, middle, y + ROW - 6], fill=AUTOREGRESSIVE)
        draw.rectangle([middle, y + 5, end, y + ROW - 6], fill=PIXELS)
        draw.text((end + 6, y + 6), f"{row['ms_per_sample']:.3g} ms", fill=TEXT, font=font)
    image.save(path)


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    for x, color, label in ((LEFT, AUTOREGRESSIVE, "codes"), (LEFT + 100, PIXELS, "pixels")):
        draw.rectangle([x, 36, x + 14, 50], fill=color)
        draw.text((x + 20, 34), label, fill=TEXT, font=font)
