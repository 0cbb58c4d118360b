"""The acceptance on a GPU: `python -m benchmarks.gpu [--minutes 8] [--out DIR] [--only NAME ...]`.

Items are ordered by value and each runs in a process of its own, with a time limit. One JSON line per item is appended
to DIR/gpu.jsonl as soon as it is known. A run that was cut short goes on where it stopped: what was right with the same
code on the same device is not run again. Two tables at the end. Exit code 0: all ran and were right; 1: not; 2: a
mistake of the command line, or a package is missing. `--tiny --device cpu` rehearses every item on a CPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.packages import check_packages
from benchmarks.gpu.plan import PLAN, TINY_LIMIT, TINY_SECONDS, Item, chosen, print_plan
from benchmarks.gpu.result_lines import IDENTITY, ResultLines, source_state
from benchmarks.gpu.running import ITEMS, ItemProcesses, Outcome
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import item_table, target_table
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error

DATA = "RQ_FASHION_MNIST"  # environment variable: the folder of the data set's four files
# what the entry scripts import beside that; items start them
OF_SCRIPTS = ("training.launch", "training.launch.session", "training.launch.flags", "scoring.sample_scores")
GRACE, TIMES = 20.0, 2.5  # an item may take its estimate so many times, and so many seconds


class Budget:
    """The time of one run."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__.splitlines()[0],
        takes_words=False,
        example="python -m benchmarks.gpu --tiny --device cpu",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for this run (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where gpu.jsonl lies")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these items; --plan lists them")
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal; the only ones for a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda; with --tiny cpu")
    parser.add_argument("--again", action="store_true", help="also run what was right already")
    parser.add_argument("--plan", action="store_true", help="print items and estimated seconds, and stop")
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIR", help=f"its four files (default: ${DATA})")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    """The checked flags."""
    device = args.device or ("cpu" if args.tiny else "cuda")
    if device == "cpu" and not args.tiny:
        raise UserError("--device cpu runs with --tiny only: full sizes take hours on a CPU")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g} must be positive")
    folder = args.fashion_mnist or (Path(os.environ[DATA]) if os.environ.get(DATA) else None)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--fashion-mnist {folder}: there is no such folder")
    data = None if folder is None else str(folder.resolve())
    return Settings(device, args.tiny, data, str((args.out / "gpu.jsonl").resolve()))


def why_not(item: Item, seconds: float, lines: ResultLines, budget: Budget, again: bool) -> str | None:
    """Why an item is not started now; None if it is. An empty text: it was right already."""
    if lines.is_done(item.name) and not again:
        return ""
    if seconds > budget.left:
        return f"{max(0.0, budget.left):.0f} s left, about {seconds:.0f} s needed"
    return None


def run_items(
    items: list[Item], processes: ItemProcesses, settings: Settings, lines: ResultLines, budget: Budget, again: bool
) -> dict[str, str]:
    """Runs one item after the other. Gives why those that did not run did not; after `absent: `, what is not here."""
    left_out = {}
    for item in items:
        seconds = item.seconds
        limit = TIMES * seconds + GRACE
        if settings.tiny:
            seconds, limit = TINY_SECONDS, TINY_LIMIT
        reason = why_not(item, seconds, lines, budget, again)
        if reason is not None:
            if reason:
                left_out[item.name] = reason
            print(f"{item.name}: {reason or 'was right already'}", flush=True)
            continue
        outcome = processes.run(item.target, settings, min(limit, max(budget.left, seconds)))
        if outcome.absent is not None:
            left_out[item.name] = f"absent: {outcome.absent}"
            print(f"{item.name}: {left_out[item.name]}", flush=True)
            continue
        line = lines.append(item.name, outcome)
        state = "right" if line["ok"] else f"WRONG: {line['error']}"
        print(f"{item.name}: {state} ({line['seconds']:.1f} s) {line['result']}"[:700], flush=True)
    return left_out


def describe_machine(processes: ItemProcesses, settings: Settings) -> dict[str, Any]:
    """Device, driver and versions, asked in a process of its own; UserError where there is no such device."""
    outcome: Outcome = processes.run("environment:describe", settings, 120.0)
    if outcome.absent:
        raise UserError(outcome.absent)
    if outcome.wrong:
        raise RuntimeError(f"{outcome.wrong[0]}\n{outcome.result.get('output', '')}")
    return outcome.result


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.plan:
        print_plan()
        return 0
    settings = settings_of(args)
    items = chosen(args.only, own_runs=settings.tiny or settings.fashion_mnist is not None)
    check_packages()
    budget = Budget(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    modules = {f"{ITEMS}.{item.target.partition(':')[0]}" for item in PLAN}
    processes = ItemProcesses([*sorted(modules), *OF_SCRIPTS])
    machine = describe_machine(processes, settings)
    lines = ResultLines(Path(settings.results), {**machine, **source_state(), "tiny": settings.tiny})
    settings = replace(settings, identity={name: lines.identity.get(name) for name in IDENTITY})
    parts = {"driver": machine["driver"], **machine["versions"]}
    print(", ".join([machine["device"], *(f"{name} {value}" for name, value in parts.items() if value)]), flush=True)
    left_out = run_items(items, processes, settings, lines, budget, args.again)
    print(f"\n{item_table(items, lines.latest, left_out)}\n\n{target_table(lines.latest, settings.tiny)}")
    present = [item.name for item in items if not left_out.get(item.name, "").startswith("absent: ")]
    return 0 if all(lines.is_done(name) and name not in left_out for name in present) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the running item as well
    with exit_on_user_error(OSError):
        sys.exit(main())
