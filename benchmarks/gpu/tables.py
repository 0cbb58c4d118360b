"""The tables at the end of a run: what became of every item, and which targets were met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.plan import Item
from benchmarks.gpu.targets import TARGETS

WIDTH = 88  # of the last column


def item_table(items: Sequence[Item], lines: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    """One row per item: right, wrong (why) or not run (why)."""
    rows = []
    for item in items:
        line = lines.get(item.name)
        if item.name in left_out:
            rows.append((item.name, "not run", "", left_out[item.name]))
        elif line is not None:
            state = "right" if line["ok"] else "WRONG"
            rows.append((item.name, state, f"{line['seconds']:.1f}", line["error"] or item.what))
    return aligned([("item", "state", "seconds", ""), *rows])


def target_table(lines: Mapping[str, Mapping[str, Any]], tiny: bool) -> str:
    """One row per target; tiny sizes measure none of them."""
    results = {} if tiny else {name: line["result"] for name, line in lines.items()}
    rows = [(target.what, target.wanted, *target.verdict(results)) for target in TARGETS]
    return aligned([("target", "wanted", "measured", "verdict"), *rows])


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Columns of one width each; the last one cut off where it is long."""
    rows = [[*row[:-1], row[-1][:WIDTH]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
