"""Thousands of damaged files for every reader of files from elsewhere: mutations of sound ones, from seeds.

    python -m tests.faults.fuzz [--cases 10000] [--seed 0] [--processes 1] [--reader NAME ...] [--summary FILE]

Every reader runs in a process of its own, whose memory may grow by `MEMORY_BYTES` (RLIMIT_AS), with an alarm for every
case. A case may be read, or refused in one line by an error that the reader names (`fuzz_readers`). Anything else is a
fault: another error, a line too long, a crash, time or memory beyond the limits. Case N of a seed is the same file
always. The last line is the summary as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.fuzz_mutations import mutated
from tests.faults.fuzz_reader import Reader
from tests.faults.fuzz_readers import READERS

MEMORY_BYTES = 3 << 30  # decoding an image of the most pixels takes 2.2 GB
PROCESSOR_SECONDS, WALL_SECONDS = 20, 240  # of one case; the wall's for a machine that has much else to do
LONGEST_LINE = 1000  # with the path of the file in it
SHOWN = 20


class TooSlow(BaseException):
    """A case that goes on beyond its time."""


@dataclass
class Result:
    """Of one reader. outcomes: how often what happened; faults: of which the first are kept with their numbers."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    slowest_seconds: float = 0.0
    peak_mib: float = 0.0

    def add(self, number: int, outcome: str, text: str = "") -> None:
        self.cases += 1
        self.outcomes[outcome] += 1
        if outcome == "fault":
            self.faults.append({"case": number, "what": text[:300]})

    def add_all(self, part: Mapping[str, Any]) -> None:
        """What another process found."""
        self.cases += part["cases"]
        self.outcomes.update(part["outcomes"])
        self.faults += part["faults"]
        self.slowest_seconds = max(self.slowest_seconds, part["slowest_seconds"])
        self.peak_mib = max(self.peak_mib, part["peak_mib"])


def run(name: str, seed: int, cases: int, processes: int = 1) -> dict[str, Any]:
    """All cases of a reader, in so many processes at a time, which are started again behind a case that killed one."""
    began, result = time.monotonic(), Result()
    bounds = [cases * number // processes for number in range(processes + 1)]
    with ThreadPoolExecutor(processes) as pool:
        for part in pool.map(lambda start, end: _run_range(name, seed, start, end), bounds, bounds[1:]):
            result.add_all(vars(part))
    return {
        "cases": result.cases,
        "outcomes": dict(sorted(result.outcomes.items())),
        "faults": result.faults[:SHOWN],
        "slowest_processor_seconds": round(result.slowest_seconds, 3),
        "memory_grew_mib": round(result.peak_mib),
        "wall_seconds": round(time.monotonic() - began),
    }


def _run_range(name: str, seed: int, start: int, cases: int) -> Result:
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        while start < cases:
            words = [name, str(seed), str(start), str(cases), folder]
            ended = subprocess.run([sys.executable, "-m", "tests.faults.fuzz", "--child", *words], check=False)
            part = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
            result.add_all(part)
            start += part["cases"]
            if start < cases:
                result.add(start, "fault", f"the process ended with {ended.returncode}")
                start += 1
                if len(result.faults) > SHOWN:
                    break
    return result


def child(name: str, seed: int, start: int, cases: int, folder: Path) -> None:
    """Cases start..cases of a reader in this process; `result.json` says how far it came, after every case."""
    result, reader = Result(), READERS[name]()
    (folder / "work").mkdir(exist_ok=True)
    seeds = reader.seeds(folder / "work")
    for content in seeds:
        reader.read(content, folder / "work")  # a sound file is read, or nothing is tested
    _save(result, folder)
    warnings.simplefilter("ignore")
    before = _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_BYTES, before + MEMORY_BYTES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(start, cases):
        began = time.process_time()
        outcome, text = one_case(reader, seeds, random.Random(f"{seed}/{name}/{number}"), folder / "work")
        result.add(number, outcome, text)
        result.slowest_seconds = max(result.slowest_seconds, time.process_time() - began)
        result.peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
        _save(result, folder)
        if len(result.faults) > SHOWN:
            break


def one_case(reader: Reader, seeds: Sequence[bytes], draw: random.Random, folder: Path) -> tuple[str, str]:
    """(`read`, `refused` or `fault`, what was said)."""
    content = reader.repaired(mutated(draw.choice(seeds), seeds, draw, reader.words), draw)
    try:
        with _limited():
            reader.read(content, folder)
    except TooSlow:
        return "fault", "it takes too long"
    except reader.errors as error:
        text = str(error)
        is_line = "\n" not in text and len(text) <= LONGEST_LINE
        return ("refused", text) if is_line or not reader.one_line else ("fault", f"not one line: {text[:200]}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "fault", f"{type(error).__name__}: {error}"
    return "read", ""


@contextmanager
def _limited() -> Iterator[None]:
    def too_slow(*_: Any) -> None:
        raise TooSlow

    for what in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(what, too_slow)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _save(result: Result, folder: Path) -> None:
    content = {**vars(result), "outcomes": dict(result.outcomes)}
    (folder / "result.new").write_text(json.dumps(content), encoding="utf-8")
    (folder / "result.new").rename(folder / "result.json")


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Damaged files for every reader.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="at a time, which share the cases of a reader")
    parser.add_argument("--reader", choices=READERS, nargs="+", default=list(READERS))
    parser.add_argument("--summary", type=Path, help="a JSON file, to which other readers are added")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.child:
        name, *numbers, folder = args.child
        child(name, *map(int, numbers), Path(folder))
        return 0
    summary: dict[str, Any] = {"readers": {}}
    if args.summary and args.summary.is_file():
        summary = json.loads(args.summary.read_text(encoding="utf-8"))
    for name in args.reader:
        found = run(name, args.seed, args.cases, args.processes)
        command = f"python -m tests.faults.fuzz --reader {name} --cases {args.cases} --seed {args.seed}"
        summary["readers"][name] = {"command": command, **found}
        print(name, json.dumps(found), flush=True)
        if args.summary:
            limits = {
                "memory_bytes": MEMORY_BYTES,
                "processor_seconds": PROCESSOR_SECONDS,
                "wall_seconds": WALL_SECONDS,
            }
            summary |= {"benchmark": "fuzz", "python": platform.python_version(), "limits_of_a_case": limits}
            args.summary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return int(any(found["outcomes"].get("fault") for found in summary["readers"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
