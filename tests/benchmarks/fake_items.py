"""Items of the acceptance that behave badly, for the tests of what runs them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.report import Report
from benchmarks.gpu.settings import Absent


def right(report: Report) -> None:
    report.note("number", 3)
    report.check("holds", True, error=0.0)


def wrong(report: Report) -> None:
    report.check("does not hold", False, error=0.5)
    report.note("after", 1)


def one_case_fails(report: Report) -> None:
    with report.case("bad"):
        raise ValueError("two\nlines")
    with report.case("good"):
        report.note("good", 1)


def raises(report: Report) -> None:
    report.note("before", 1)
    raise MemoryError("all of it is taken")


def crashes(report: Report) -> None:
    report.note("before", 1)
    print("a last word", flush=True)
    ctypes.string_at(0)


def leaves(report: Report) -> None:
    os._exit(3)


def hangs(report: Report) -> None:
    """Also starts a process that must not outlive it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report.note("child", child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def lacks(report: Report) -> None:
    raise Absent("no files of anything")


def counts(report: Report) -> None:
    """Leaves a line for every time that it ran."""
    with Path(report.settings.results).with_name("count").open("a") as file:
        file.write("x\n")
