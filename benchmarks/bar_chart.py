"""Bars side by side as a picture, drawn with Pillow alone."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROW, LABEL_WIDTH, PANEL_WIDTH, GAP, TOP, MARGIN = 24, 190, 260, 24, 64, 16
NUMBER_WIDTH = 64
INK, PALE = (32, 32, 32), (230, 230, 230)
COLOURS = ((52, 101, 164), (78, 154, 6), (196, 120, 20), (117, 80, 123))


def draw_bars(
    path: Path, title: str, labels: Sequence[str], panels: Sequence[tuple[str, Sequence[float | None], str]]
) -> None:
    """Write a PNG: one row per label, one panel (heading, a value or None per label, number format) beside the other.

    Every panel has its own linear scale from 0 to its largest value.
    """
    width = 2 * MARGIN + LABEL_WIDTH + len(panels) * (PANEL_WIDTH + GAP)
    image = Image.new("RGB", (width, TOP + len(labels) * ROW + MARGIN), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    draw.text((MARGIN, 10), title, INK, font)
    for row, label in enumerate(labels):
        draw.text((MARGIN, TOP + row * ROW + 3), label, INK, font)
    for number, (heading, values, number_format) in enumerate(panels):
        left = MARGIN + LABEL_WIDTH + number * (PANEL_WIDTH + GAP)
        draw.text((left, TOP - 26), heading, INK, font)
        largest = max((value for value in values if value is not None), default=0) or 1.0
        for row, value in enumerate(values):
            top = TOP + row * ROW
            length = 0 if value is None else round((PANEL_WIDTH - NUMBER_WIDTH) * value / largest)
            draw.rectangle((left, top + 4, left + PANEL_WIDTH - NUMBER_WIDTH, top + ROW - 5), fill=PALE)
            draw.rectangle((left, top + 4, left + length, top + ROW - 5), fill=COLOURS[number % len(COLOURS)])
            text = "-" if value is None else number_format.format(value)
            draw.text((left + PANEL_WIDTH - NUMBER_WIDTH + 6, top + 3), text, INK, font)
    image.save(path)
