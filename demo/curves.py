"""Line plots as inline SVG: no plotting library, no external file."""

import math
from collections.abc import Mapping, Sequence

from rqstack.printable import escaped

WIDTH, HEIGHT = 450, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 92, 28, 34
COLORS = ("#3366cc", "#dc3912", "#109618", "#990099", "#ff9900", "#0099c6")
TICKS = 4


def line_plot(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], log_y: bool = False) -> str:
    """One SVG element with axes, ticks, a legend and a line for each named sequence of (x, y).

    With `log_y`, points that are not positive are left out.
    """
    kept = {
        name: [(x, math.log10(y) if log_y else y) for x, y in points if not log_y or y > 0]
        for name, points in curves.items()
    }
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    x_scale = _Scale(min(x for x, _ in every), max(x for x, _ in every), LEFT, WIDTH - RIGHT)
    y_scale = _Scale(min(y for _, y in every), max(y for _, y in every), HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{WIDTH / 2}" y="16" text-anchor="middle" font-weight="bold">{escaped(title)}</text>']
    parts += _axes(x_scale, y_scale, log_y)
    for index, (name, points) in enumerate(kept.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 12 + 14 * index}" fill="{color}">{escaped(name)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="11">{"".join(parts)}</svg>'


class _Scale:
    """Linear map from values to pixels; a constant sequence lies in the middle."""

    def __init__(self, low: float, high: float, start: float, end: float):
        if low == high:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * index / TICKS for index in range(TICKS + 1)]


def _axes(x_scale: _Scale, y_scale: _Scale, log_y: bool) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT},{TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for value in y_scale.ticks():
        label = 10**value if log_y else value
        y = y_scale(value)
        parts.append(f'<path d="M{LEFT},{y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{label:.3g}</text>')
    for value in x_scale.ticks():
        parts.append(f'<text x="{x_scale(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:.0f}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return parts
