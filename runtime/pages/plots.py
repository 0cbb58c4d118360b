"""Plots: curves, bars and stacked shares, drawn by matplotlib, as an element inside a page or as a file.

In a page a plot has the page's own colour of text, so that it can be read on light and on dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rqstack.printable import escaped, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 5.0, 3.0  # inches
DOTS_PER_INCH = 144  # of files
NARROW = 6.0  # a log axis over a smaller ratio than this gets the ticks of a linear one
LEGEND_ENTRIES, LONG_LABEL, HALF_WIDTH = 20, 14, 38  # the last two in letters
_INK = "#010203"  # stands for the page's colour of text until the plot is part of the page


@dataclass(frozen=True)
class LinePlot:
    """What a plot of curves shows.

    Args:
        title: above it, and what a screen reader says.
        curves: label -> (x, y) in order; those without points are left out.
        x_label, y_label: of the axes.
        log_y: logarithmic; points that are not positive are left out.
        dashed: labels whose curves are dashed.
        colors: label -> number of its colour; those without one take the next.
        events: label -> x at which a thin vertical line stands.
        points: mark every point.
        square: both axes go from 0 to 1 and have one length.
    """

    title: str
    curves: Mapping[str, Points]
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False
    dashed: Sequence[str] = ()
    colors: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, Sequence[float]] = field(default_factory=dict)
    points: bool = False
    square: bool = False

    def shown(self) -> dict[str, Points]:
        """The curves that have something to show."""
        kept = {label: [(x, y) for x, y in points if not self.log_y or y > 0] for label, points in self.curves.items()}
        return {label: points for label, points in kept.items() if points}

    def svg(self) -> Markup:
        """An element for a page; empty where there is nothing to show."""
        if not self.shown():
            return Markup("")
        with _figure(self.title, WIDTH if not self.square else HEIGHT + 1.2, HEIGHT) as figure:
            self._draw(figure)
            return _element(figure, f"{self.title}: {', '.join(self.shown())}")

    def save(self, path: Path) -> None:
        """Writes the plot as a picture."""
        with _figure(self.title, WIDTH * 1.3, HEIGHT * 1.3) as figure:
            self._draw(figure)
            _save(figure, path)

    def _draw(self, figure: Figure) -> None:
        axes, shown = figure.subplots(), self.shown()
        solid, dashed = count(), count()  # a dashed curve has the colour of the solid one in the same place
        for label, points in shown.items():
            number = next(dashed if label in self.dashed else solid)
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=f"C{self.colors.get(label, number) % 10}",
                label=printable(label),
                linestyle="--" if label in self.dashed else "-",
                linewidth=1.4,
                marker="o" if self.points or len(points) == 1 else None,
                markersize=3.5,
            )
        for number, (label, places) in enumerate(self.events.items()):
            for index, x in enumerate(places):
                axes.axvline(x, color=f"C{(len(shown) + number) % 10}", linewidth=0.8, linestyle=":")
                if index == 0:
                    axes.plot([], [], color=f"C{(len(shown) + number) % 10}", linestyle=":", label=printable(label))
        if self.log_y:
            _log_axis(axes, [y for points in shown.values() for _, y in points])
        if self.square:
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set(title=printable(self.title), xlabel=self.x_label, ylabel=self.y_label)
        axes.grid(alpha=0.25)
        labels = [*shown, *(label for label, places in self.events.items() if places)]
        if not 1 < len(labels) <= LEGEND_ENTRIES:
            return
        if max(map(len, labels)) > LONG_LABEL:
            columns = 2 if max(map(len, labels)) <= HALF_WIDTH else 1  # wider ones would be cut off
            figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=columns)
        elif len(labels) <= 3:
            axes.legend(frameon=False, fontsize="small", loc="best")
        else:
            axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


@dataclass(frozen=True)
class BarPanel:
    """One column of bars.

    Args:
        heading: above it.
        values: for each row; None has no bar.
        number_format: how the number beside a bar is written.
        part: of each bar, drawn dark.
        part_names: what the dark part and the rest are, for the legend.
        missing: for each row what stands there in place of a bar.
    """

    heading: str
    values: Sequence[float | None]
    number_format: str = "{:.3g}"
    part: Sequence[float | None] = ()
    part_names: tuple[str, str] = ("", "")
    missing: Sequence[str] = ()


def save_bars(path: Path, title: str, labels: Sequence[str], panels: Sequence[BarPanel]) -> None:
    """Writes a picture with one row for each label and the panels beside each other, every one on its own scale."""
    with _figure(title, max(6.5, 2.2 + 2.4 * len(panels)), 0.9 + 0.26 * len(labels)) as figure:
        figure.suptitle(title, fontsize="medium")
        (row_of_axes,) = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for number, (axes, panel) in enumerate(zip(row_of_axes, panels, strict=True)):
            color, rows = f"C{number % 10}", range(len(labels))
            lengths = [value or 0.0 for value in panel.values]
            bars = axes.barh(rows, lengths, color=color, alpha=0.4 if panel.part else 1.0, label=panel.part_names[1])
            if panel.part:
                axes.barh(rows, [value or 0.0 for value in panel.part], color=color, label=panel.part_names[0])
                axes.legend(frameon=False, loc="lower right")
            missing = panel.missing or ["-"] * len(labels)
            texts = [
                printable(text) if value is None else panel.number_format.format(value)
                for value, text in zip(panel.values, missing, strict=True)
            ]
            axes.bar_label(bars, texts, padding=3, fontsize="small")
            axes.set(title=panel.heading, xticks=[], yticks=rows, yticklabels=[printable(label) for label in labels])
            axes.margins(x=0.25)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        row_of_axes[0].invert_yaxis()  # the first label is at the top
        _save(figure, path)


@contextmanager
def _figure(title: str, width: float, height: float) -> Iterator[Figure]:
    """A figure in the house's settings, which hold for no other one in the process."""
    # few commands draw, and those that do not should not wait for the import
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _INK
    )
    settings: Any = {  # its stubs of some releases want a type of all names of settings
        **ink,
        "grid.color": _INK,
        "font.size": 9,
        "font.sans-serif": ["DejaVu Sans"],
        "axes.titlesize": "medium",
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # equal plots are equal files
        "text.parse_math": False,  # a dollar in a name is a dollar
        "axes.formatter.use_mathtext": False,
    }
    with rc_context(settings):
        yield Figure(figsize=(width, height), layout="constrained")


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib import ticker

    axes.set_yscale("log")
    narrow = max(values) < NARROW * min(values)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5) if narrow else ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _element(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element that stands in HTML, named for screen readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2).replace(_INK, "currentColor")
    opening = f'<svg class="plot" role="img" aria-label="{escaped(label)}"'
    return Markup(text.replace("<svg", opening, 1))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
