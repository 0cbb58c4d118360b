"""`python -m training.report RUN [RUN ...]`: one page on one or more runs, with curves, pictures and hints.

The page is one file without scripts or links; it can be sent. Of one run it is `report.html` in its directory; of
several, `report.html` where the command is typed, unless `--out` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.cli import ArgumentParser
from runtime.errors import exit_on_user_error, say


def main(paths: Sequence[Path], out: Path | None) -> None:
    """Reads the runs and writes the page."""
    # after the flags are read: `--help` does not wait for torch
    from training.report.page import REPORT_FILE, write_report
    from training.report.run_record import RunRecord

    runs = [RunRecord.open(path) for path in paths]
    if out is None:
        out = runs[0].run_dir / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE)
    write_report(runs, out)
    say(out)


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m training.report",
        description="One page on training runs: status, curves, pictures, hints, settings.",
        example="python -m training.report runs/digits/2026-01-31_12-00-00",
        takes_words=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories; several are compared")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the run, or here for several)")
    arguments = parser.parse_args()
    with exit_on_user_error(OSError):
        main(arguments.runs, arguments.out)
