"""From results to tables: means and spreads over seeds, verdicts, Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paper_claims.claims import Cell, Claim, Values
from benchmarks.paper_claims.sizes import Size

SEEN, NOT_SEEN, REVERSED, NOT_RUN = "seen", "not seen", "reversed", "not run"
Find = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Finding:
    """What is known of a claim.

    Attributes:
        numbers: row -> column -> the numbers of the seeds that have run.
        verdicts: of every check.
        margins: of every check, by seed.
        seeds: those of which all has run.
    """

    numbers: dict[str, dict[str, list[float]]]
    verdicts: list[str]
    margins: list[list[float]]
    seeds: list[int]


def look_up(result: Mapping[str, Any], path: str) -> float:
    """The number at a path: keys and places in lists, joined by dots, or by bars where keys have dots."""
    found: Any = result
    for part in path.split("|" if "|" in path else "."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return float(found)


def evaluate(claim: Claim, size: Size, seeds: Sequence[int], find: Find) -> Finding:
    """What the runs that are there say of a claim; a verdict needs all rows of every seed."""
    numbers: dict[str, dict[str, list[float]]] = {}
    whole: dict[int, Values] = {}
    for seed in seeds:
        values: dict[str, dict[str, float]] = {}
        complete = True
        for row, cells in claim.rows(size, seed).items():
            kept = numbers.setdefault(row, {column: [] for column in claim.columns})
            for column, cell in cells.items():
                number = find(cell)
                if number is None:
                    complete = False
                    continue
                kept[column].append(number)
                values.setdefault(row, {})[column] = number
        if complete:
            whole[seed] = values
    margins = [[check.margin(values) for values in whole.values()] for check in claim.checks]
    verdicts = [verdict(found) if len(whole) == len(seeds) else NOT_RUN for found in margins]
    return Finding(numbers, verdicts, margins, list(whole))


def verdict(margins: Sequence[float]) -> str:
    """Seen, reversed or neither, by the signs of the margins of all seeds."""
    if all(margin > 0 for margin in margins):
        return SEEN
    return REVERSED if all(margin < 0 for margin in margins) else NOT_SEEN


def mean_and_spread(numbers: Sequence[float], number_format: str) -> str:
    """`mean ± standard deviation (seeds)`."""
    if not numbers:
        return NOT_RUN
    mean = number_format.format(statistics.mean(numbers))
    if len(numbers) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {number_format.format(statistics.stdev(numbers))}"


def markdown(letter: str, claim: Claim, finding: Finding, num_seeds: int) -> str:
    """The section of a claim: its table and what it says of every check."""
    done = len(finding.seeds)
    state = "" if done == num_seeds else f" ({done} of {num_seeds} seeds have run)"
    lines = [f"### ({letter}) Claim: {claim.says}{state}", ""]
    lines += [f"| {claim.row_name} | " + " | ".join(claim.columns) + " |", "|---" * (1 + len(claim.columns)) + "|"]
    for row, cells in finding.numbers.items():
        shown = [mean_and_spread(cells[column], form) for column, form in claim.columns.items()]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    lines.append("")
    for check, found, margins in zip(claim.checks, finding.verdicts, finding.margins, strict=True):
        holding = sum(margin > 0 for margin in margins)
        count = f" ({holding} of {len(margins)} seeds)" if margins else ""
        lines.append(f"- {check.says}: **{found}**{count}")
    if claim.note:
        lines += ["", claim.note]
    return "\n".join(lines)


def as_json(claim: Claim, finding: Finding) -> dict[str, Any]:
    """The same, with all digits."""
    return {
        "claim": claim.says,
        "rows": finding.numbers,
        "seeds": finding.seeds,
        "checks": [
            {"says": check.says, "verdict": found, "margins": margins}
            for check, found, margins in zip(claim.checks, finding.verdicts, finding.margins, strict=True)
        ],
    }
