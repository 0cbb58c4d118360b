"""Finds out which rank hangs: every rank says where it stands, and rank 0 reports when one has stopped moving.

A thread on every rank writes `(step, phase, seconds since then, place in the code)` to the board of the run. A
collective makes all ranks wait for the one that hangs, so the rank that has stood still the longest is named first.

Seconds count while a process runs: a run that was paused as a whole (SIGSTOP, a machine that slept) goes on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType

from runtime.distributed import Board, get_rank, get_world_size
from runtime.errors import TRACEBACK_VARIABLE

HANG_EXIT_CODE = 70
"""What a run that was found hanging exits with: `EX_SOFTWARE` of sysexits.h. A launcher may restart it."""

MAX_INTERVAL_SECONDS = 10.0
NOWHERE = ""
_LATE_SECONDS = 1.0
_VERDICT = "verdict"
_NAMED_AT_MOST = 8
_OURS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Standing:
    """Where one rank is: `idle` seconds ago it entered `phase` of `step`; `place` is what it executes now, `NOWHERE` of
    a rank that has not said so yet.
    """

    rank: int
    step: int
    phase: str
    idle: float
    place: str

    @property
    def is_in_collective(self) -> bool:
        return self.place.startswith("distributed/")

    def __str__(self) -> str:
        if self.place == NOWHERE:
            return f"rank {self.rank} has not reported since the run began, {self.idle:.0f} s ago"
        return f"rank {self.rank} stands at step {self.step} ({self.phase}) since {self.idle:.0f} s, in {self.place}"


class WakingClock:
    """Seconds that this process was awake. A thread of its own, which waits for nothing else, notices the rest.

    Between its ticks the clock goes on by `_LATE_SECONDS` more than planned and then stands, until the thread has said
    whether the process slept: whoever wakes up first sees no leap.
    """

    def __init__(self) -> None:
        self._lost, self._stands_at = 0.0, float("inf")

    def now(self) -> float:
        """Seconds; only differences mean something."""
        return min(time.monotonic(), self._stands_at) - self._lost

    def tick(self, planned: float, ended: threading.Event) -> None:
        """The thread: sleeps of `planned` seconds that take much longer passed while nothing here could run."""
        while True:
            self._stands_at = time.monotonic() + planned + _LATE_SECONDS
            if ended.wait(planned):
                return
            self._lost += max(0.0, time.monotonic() - self._stands_at)


class Watchdog:
    """Watches this process and, together with those of the other ranks, the run. A context manager.

    The main thread calls `beat` whenever it enters a new phase. When some rank has not for `timeout` seconds, rank 0
    reports all of them and every rank exits with `HANG_EXIT_CODE`, also out of a collective that will never end.

    Args:
        timeout: seconds without progress; None watches nothing. It must exceed the longest single phase.
        report: gets the message on rank 0, before the process ends.
        stop: ends the process; exchanged in tests.
    """

    def __init__(
        self, timeout: float | None, report: Callable[[str], None], stop: Callable[[int], None] = os._exit
    ) -> None:
        self.timeout, self.report, self._stop = timeout, report, stop
        self.rank, self.world_size = get_rank(), get_world_size()
        self.interval = min(MAX_INTERVAL_SECONDS, (timeout or 0.0) / 5)
        self._clock = WakingClock()
        self._beat = (0, "start", self._clock.now())
        self._main_thread = threading.main_thread().ident or 0
        self._read: dict[int, tuple[str, float]] = {}
        self._is_judge = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int, phase: str) -> None:
        """Says that the run is alive and enters `phase` of `step`."""
        self._beat = (step, phase, self._clock.now())

    def pulse(self) -> None:
        """Says that the run is alive, in the phase that it is in."""
        step, phase, _ = self._beat
        self.beat(step, phase)

    def __enter__(self) -> Watchdog:
        if self.timeout is not None:
            self._board = Board("watchdog")
            self._started = self._clock.now()
            planned = min(_LATE_SECONDS, self.interval)
            ticks = threading.Thread(target=self._clock.tick, args=(planned, self._ended), name="ticks", daemon=True)
            ticks.start()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def standing(self) -> Standing:
        """Where this rank is."""
        step, phase, since = self._beat
        place = place_of(sys._current_frames().get(self._main_thread))
        return Standing(self.rank, step, phase, max(0.0, self._clock.now() - since), place)

    def _watch(self) -> None:
        while True:
            try:
                verdict = self._look_around()
            except (RuntimeError, OSError):
                return  # the store went with the process that holds it: the run is over
            if verdict is not None:
                self._end(verdict)
                return
            if self._ended.wait(self.interval):
                return

    def _look_around(self) -> str | None:
        """Writes where this rank stands; the verdict on the run, if there is one."""
        self._board.write(f"rank{self.rank}", json.dumps(asdict(self.standing())))
        (verdict,) = self._board.read([_VERDICT])
        # rank 1 judges as well, later, because it may be rank 0 whose whole process stands still
        if verdict is not None or self.rank > 1:
            return verdict
        assert self.timeout is not None, "without a timeout nothing is watched"
        standings = self._all_standings()
        if max(standing.idle for standing in standings) < self.timeout + 3 * self.interval * self.rank:
            return None
        self._is_judge = True
        return self._board.write_first(_VERDICT, describe(standings, self.timeout))

    def _all_standings(self) -> list[Standing]:
        """Where every rank is; one that no longer writes, or never has, has been idle since."""
        standings, now = [], self._clock.now()
        texts = self._board.read([f"rank{rank}" for rank in range(self.world_size)])
        for rank, text in enumerate(texts):
            if text is None:
                standings.append(Standing(rank, 0, "start", now - self._started, NOWHERE))
                continue
            if self._read.get(rank, ("", now))[0] != text:
                self._read[rank] = (text, now)
            standing = Standing(**json.loads(text))
            standings.append(replace(standing, idle=standing.idle + now - self._read[rank][1]))
        return standings

    def _end(self, verdict: str) -> None:
        if self.rank == 0 or self._is_judge:
            self.report(verdict)
        if os.environ.get(TRACEBACK_VARIABLE):
            faulthandler.dump_traceback(all_threads=True)
        # the others leave after rank 0, whose launcher would otherwise end it before it has spoken
        time.sleep(min(2.0, self.interval) * min(self.rank, 1))
        self._stop(HANG_EXIT_CODE)


def describe(standings: list[Standing], timeout: float) -> str:
    """One line: the ranks by how likely it is that the others wait for them.

    First those at the earliest step, of these the ones that are not in a collective themselves, then by idle time.
    """
    likely_first = sorted(standings, key=lambda it: (it.step, it.is_in_collective, -it.idle))
    named = "; ".join(map(str, likely_first[:_NAMED_AT_MOST]))
    more = len(standings) - _NAMED_AT_MOST
    rest = f"; {more} more ranks wait" if more > 0 else ""
    return f"no progress for {timeout:g} s (experiment.hang_timeout): {named}{rest}"


def place_of(frame: FrameType | None) -> str:
    """`file:line function` of what a thread executes, and of the innermost of our own functions around it."""
    if frame is None:
        return "an ended thread"
    innermost = _name(frame)
    while frame is not None and not _is_ours(frame):
        frame = frame.f_back
    if frame is None or _name(frame) == innermost:
        return innermost
    return f"{innermost}, called from {_name(frame)}"


def _is_ours(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    return file.is_relative_to(_OURS) and "site-packages" not in file.parts


def _name(frame: FrameType) -> str:
    file = Path(frame.f_code.co_filename)
    return f"{'/'.join(file.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
