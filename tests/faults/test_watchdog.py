"""A rank that hangs is named, and the run ends, although the others wait in a collective."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from runtime import distributed, watchdog
from runtime.watchdog import HANG_EXIT_CODE, NOWHERE, Standing, Watchdog, describe
from tests.commands import start

TIMEOUT = 2.0


def _hang(rank: int, folder: str, sleeper: int) -> None:
    """Both ranks train; `sleeper` falls asleep in its third step and the other waits for it in a collective."""

    def stop(code: int) -> None:
        Path(folder, f"stop{rank}").write_text(str(code))
        os._exit(0)  # success for whoever started the ranks

    def report(line: str) -> None:
        Path(folder, f"report{rank}").write_text(line)

    with Watchdog(TIMEOUT, report, stop) as watchdog:
        for step in range(5):
            watchdog.beat(step, "training step")
            if step == 3 and rank == sleeper:
                time.sleep(60)
            distributed.all_reduce_sum_(torch.ones(1))
    raise AssertionError("nobody noticed")


def _watch_a_sound_run(rank: int, folder: str) -> None:
    """Longer than the limit, but moving."""
    with Watchdog(TIMEOUT, lambda line: Path(folder, "report").write_text(line)) as watchdog:
        for step in range(6):
            watchdog.beat(step, "training step")
            time.sleep(TIMEOUT / 4)
            distributed.all_reduce_sum_(torch.ones(1))
    distributed.barrier()


def test_the_sleeping_rank_is_named_first(on_ranks, tmp_path):
    on_ranks(_hang, str(tmp_path), 1)
    report = (tmp_path / "report0").read_text()
    assert report.startswith("no progress for 2 s (experiment.hang_timeout): rank 1 stands at step 3 (training step)")
    assert "test_watchdog.py" in report.split(";")[0]
    assert "; rank 0 stands at step 3 (training step)" in report
    assert "all_reduce" in report.split(";")[1]
    assert [(tmp_path / f"stop{rank}").read_text() for rank in (0, 1)] == ["70", "70"]
    assert not (tmp_path / "report1").exists(), "one rank speaks"


def test_a_slow_but_moving_run_goes_on(on_ranks, tmp_path):
    on_ranks(_watch_a_sound_run, str(tmp_path))
    assert not (tmp_path / "report").exists()


def test_a_single_process_is_watched_too():
    lines, codes = [], []
    with Watchdog(0.2, lines.append, codes.append) as watchdog:
        watchdog.beat(7, "waiting for data")
        time.sleep(0.8)
    assert codes == [70]
    assert "rank 0 stands at step 7 (waiting for data)" in lines[0]


def test_without_a_timeout_nothing_is_watched():
    with Watchdog(None, lambda line: None) as watchdog:
        watchdog.beat(1, "training step")
        assert watchdog._thread is None


def test_the_rank_that_is_behind_comes_before_those_that_wait_for_it():
    behind = Standing(2, 4, "waiting for data", 9.0, "data/images/file_dataset.py:7 read")
    busy = Standing(1, 5, "training step", 9.5, "training/stages/stage1.py:9 f")
    waiting = Standing(0, 5, "training step", 9.9, "distributed/distributed_c10d.py:1 all_reduce")
    line = describe([waiting, busy, behind], 9)
    places = [line.index(f"rank {rank}") for rank in (2, 1, 0)]
    assert places == sorted(places)


def test_many_ranks_are_cut_short():
    standings = [Standing(rank, 5, "training step", 10.0 - rank / 100, "x.py:1 f") for rank in range(64)]
    line = describe(standings, 9)
    assert "rank 0 stands" in line
    assert "rank 9 stands" not in line
    assert line.endswith("; 56 more ranks wait")


PAUSED = """
import os, sys, time
from runtime.watchdog import Watchdog
with Watchdog(2.0, lambda line: print(line, file=sys.stderr)) as watchdog:
    for word in ("watched", "went on"):
        print(word, flush=True)
        for _ in range(20):
            time.sleep(0.1)
            watchdog.pulse()
    time.sleep(60)
"""


def test_a_paused_run_goes_on_and_one_that_hangs_afterwards_does_not():
    """Stopped for longer than the limit: nobody hung, nothing moved."""
    process = start("-c", PAUSED)
    assert process.stdout.readline() == "watched\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert out == "went on\n"
    assert err.count("no progress for 2 s") == 1
    assert process.returncode == HANG_EXIT_CODE


def _never_report(rank: int, folder: str) -> None:
    """Rank 1 stops before it has begun to watch; rank 0 is the one that has to say so."""
    lines: list[str] = []

    def stop(code: int) -> None:
        Path(folder, "report").write_text(lines[0])
        os._exit(0)

    if rank == 1:
        while not Path(folder, "report").exists():
            time.sleep(0.05)
        os._exit(0)
    with Watchdog(TIMEOUT, lines.append, stop) as watched:
        while True:
            watched.beat(1, "training step")
            time.sleep(0.1)


def test_a_rank_that_never_reported_is_named(on_ranks, tmp_path):
    on_ranks(_never_report, str(tmp_path))
    first = (tmp_path / "report").read_text().split(": ", 1)[1].split("; ")[0]
    assert first.startswith("rank 1 has not reported since the run began, ")


def test_a_rank_without_a_word_comes_first():
    silent, busy = Standing(1, 0, "start", 9.0, NOWHERE), Standing(0, 7, "training step", 0.1, "x.py:1 f")
    assert describe([busy, silent], 9).index("rank 1 has not reported") < describe([busy, silent], 9).index("rank 0")


def test_time_that_a_process_slept_is_not_counted(monkeypatch):
    clock, seen = watchdog.WakingClock(), []
    moment = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: moment[0])
    sleeps = iter([1.0, 1.5, 61.0, 1.0])

    class Ended:
        def wait(self, planned: float) -> bool:
            moment[0] += next(sleeps)
            seen.append(clock.now())  # of a thread that wakes up before this one
            return len(seen) == 4

    clock.tick(1.0, Ended())
    assert seen == [101.0, 102.5, 104.5, 105.5], "of 61 s only those until it must be late"
