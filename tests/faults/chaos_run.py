"""One training run under chaos: its launcher, its ranks, and everything that can be done to them.

`FAULTS` is the table: what each does, from a random draw, and what it says of it. A fault is over when its function
returns, but for ranks that have died: the launcher, or whoever drives the run, starts those again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.atomic import is_complete
from runtime.processes.run_ownership import OWNER_FILE
from runtime.step_directories import CHECKPOINTS, step_name
from tests.faults.chaos_launcher import Launch, ends_of, printed_by, processes_of, start
from tests.faults.chaos_network import Network
from tests.ranks import children_of, is_running
from training.checkpoints.checkpoint_directories import complete_checkpoints

HANG_SECONDS = 20
LIMIT_SECONDS = 300.0  # of anything that is waited for
LAUNCHES = 25  # of one run
SIZES = (2, 3, 4)


@dataclass(frozen=True)
class World:
    """Where runs live.

    Attributes:
        config: the run's YAML file; `data` is the folder of images that it names.
        disk: a small disk that can be filled; None where there is none of its own.
        network: of the ranks; None where they share that of the machine.
    """

    config: Path
    data: Path
    disk: Path | None
    network: Network | None


class Run:
    """One run: it is started, disturbed, and started again until its last step is saved.

    Args:
        folder: for its results, and for what its launchers say.
        steps: the last step of its plan.
    """

    def __init__(self, world: World, folder: Path, scratch: Path, steps: int) -> None:
        self.world, self.folder, self.scratch, self.steps = world, folder, scratch, steps
        self.places: list[Path] = []
        self.sizes: list[int] = []
        self.counts: Counter[str] = Counter()

    def launch(self, ranks: int, restarts: int = 1, *flags: str) -> None:
        """Starts a launcher, which finds out by itself where the run stands."""
        assert len(self.places) < LAUNCHES, f"the run does not come to its end: {self.scratch}"
        flags = flags or ("-m", str(self.world.config), "-r", str(self.folder), "--auto-resume")
        self.places.append(self.scratch / f"launch{len(self.places):02d}")
        self.sizes.append(ranks)
        self.launcher = start(Launch(flags, ranks, str(self.places[-1]), restarts))

    @property
    def ranks(self) -> list[int]:
        """The processes of the ranks, by rank."""
        return processes_of(self.places[-1])

    def run_dirs(self) -> list[Path]:
        """The directories of the run: more than one where it died before its first checkpoint."""
        return sorted(
            (file.parent for file in self.folder.glob("*/*/launch.json")), key=lambda run: run.stat().st_mtime
        )

    def step(self) -> int:
        """The last step that any of its directories has logged."""
        return max((step for run in self.run_dirs() for step in _steps(run)), default=0)

    def has_checkpoint(self) -> bool:
        return any(complete_checkpoints(run) for run in self.run_dirs())

    def wait_for_step(self, step: int) -> bool:
        """Waits until a step is logged; False where the launcher ended first."""
        wait_for(lambda: self.step() >= step or not self.launcher.is_alive())
        return self.launcher.is_alive()

    def is_done(self) -> bool:
        return bool(self._done())

    def last(self) -> Path:
        """The directory that came to the end."""
        (done,) = self._done()
        return done

    def _done(self) -> list[Path]:
        return [run for run in self.run_dirs() if is_complete(run / CHECKPOINTS / step_name(self.steps))]

    def exit_codes(self) -> Counter[int]:
        """Of all ranks of all attempts."""
        return Counter(code for place in self.places for codes in ends_of(place) for code in codes)

    def printed(self) -> str:
        return "".join(map(printed_by, self.places))

    def kill_all(self) -> None:
        """Leaves no process behind."""
        if self.launcher.is_alive():
            self.launcher.kill()
            self.launcher.join()
        for place in self.places:
            for pid in processes_of(place):
                kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
    """Until it holds; an error when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing moves"
        time.sleep(0.02)


def kill(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a rank; it may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _steps(run: Path) -> Iterator[int]:
    with suppress(OSError):
        for line in (run / "metrics.jsonl").read_text(errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                yield json.loads(line)["step"]


def kill_a_rank(run: Run, draw: random.Random) -> str:
    rank = draw.randrange(len(run.ranks))
    kill(run.ranks[rank], signal.SIGKILL)
    return f"kill -9 of rank {rank}"


def kill_a_worker(run: Run, draw: random.Random) -> str:
    workers = [child for rank in run.ranks for child in children_of(rank)]
    if workers:
        kill(draw.choice(workers), signal.SIGKILL)
    return "kill -9 of a data worker"


def pause_a_rank(run: Run, draw: random.Random) -> str:
    rank, seconds = draw.randrange(len(run.ranks)), draw.uniform(0.2, 5.0)
    pid = run.ranks[rank]
    kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    kill(pid, signal.SIGCONT)
    return f"rank {rank} paused for {seconds:.1f} s"


def stop_a_rank(run: Run, draw: random.Random) -> str:
    """For good: the watchdog has to find it."""
    rank, attempts = draw.randrange(len(run.ranks)), len(ends_of(run.places[-1]))
    pid = run.ranks[rank]
    kill(pid, signal.SIGSTOP)
    wait_for(lambda: len(ends_of(run.places[-1])) > attempts or not run.launcher.is_alive())
    kill(pid, signal.SIGCONT)
    named = f"rank {rank} stands at" in run.printed() or f"rank {rank} has" in run.printed()
    run.counts["stopped ranks named"] += named
    return f"rank {rank} stopped for good{'' if named else ' (not named)'}"


def pause_all(run: Run, draw: random.Random) -> str:
    """Longer than the watchdog's limit: a machine that sleeps."""
    ranks, attempts = run.ranks, len(ends_of(run.places[-1]))
    for pid in ranks:
        kill(pid, signal.SIGSTOP)
    time.sleep(HANG_SECONDS + 4)
    for pid in draw.sample(ranks, len(ranks)):
        kill(pid, signal.SIGCONT)
    step = run.step()
    wait_for(lambda: run.step() > step or len(ends_of(run.places[-1])) > attempts or not run.launcher.is_alive())
    went_on = run.step() > step
    run.counts["whole pauses survived"] += went_on
    return f"all ranks paused for {HANG_SECONDS + 4} s{'' if went_on else ' (ENDED)'}"


def fill_the_disk(run: Run, draw: random.Random) -> str:
    assert run.world.disk is not None
    filler, seconds = run.world.disk / "filler", draw.uniform(0.5, 5.0)
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    time.sleep(seconds)
    filler.unlink()
    return f"disk full for {seconds:.1f} s"


def slow_the_disk(run: Run, draw: random.Random) -> str:
    each, seconds = draw.uniform(0.1, 0.6), draw.uniform(1.0, 5.0)
    switch = run.places[-1] / "slow"
    switch.write_text(str(each))
    time.sleep(seconds)
    switch.unlink()
    return f"each write takes {each:.1f} s longer, for {seconds:.1f} s"


def hide_the_data(run: Run, draw: random.Random) -> str:
    seconds, away = draw.uniform(0.1, 4.0), run.world.data.with_name("away")
    run.world.data.rename(away)
    time.sleep(seconds)
    away.rename(run.world.data)
    return f"data away for {seconds:.1f} s"


def cut_the_network(run: Run, draw: random.Random) -> str:
    assert run.world.network is not None
    rank, seconds = draw.randrange(len(run.ranks)), draw.uniform(0.5, 8.0)
    run.world.network.cut(rank)
    time.sleep(seconds)
    run.world.network.heal(rank)
    return f"network of rank {rank} cut for {seconds:.1f} s"


def kill_the_launcher(run: Run, draw: random.Random) -> str:
    """The orphans have to save and to end by themselves."""
    orphans = run.ranks
    run.launcher.kill()
    run.launcher.join()
    wait_for(lambda: not any(map(is_running, orphans)))
    run.counts["orphans that ended"] += len(orphans)
    return "kill -9 of the launcher"


def signal_a_rank(run: Run, draw: random.Random) -> str:
    number = draw.choice((signal.SIGTERM, signal.SIGUSR1))
    rank = draw.randrange(len(run.ranks))
    kill(run.ranks[rank], number)
    return f"{number.name} to rank {rank}"


def start_a_second(run: Run, draw: random.Random) -> str:
    """Somebody resumes the living run."""
    living = [directory for directory in run.run_dirs() if (directory / OWNER_FILE).exists()]
    if not living or not complete_checkpoints(living[-1]):
        return "a second start (too early)"
    other = Run(run.world, run.folder, run.scratch / f"second{len(run.places):02d}{run.counts['seconds']:02d}", 0)
    run.counts["seconds"] += 1
    other.launch(draw.choice(SIZES), 0, "--resume", "-l", str(living[-1]))
    wait_for(lambda: not other.launcher.is_alive())
    refused = "is being written by process" in other.printed()
    over = not run.launcher.is_alive()
    run.counts["second starts refused"] += refused
    run.counts["second starts of a run that had ended"] += over and not refused
    assert refused or over or set(other.exit_codes()) - {0}, "two writers"
    return f"a second start ({'refused' if refused else 'the first had ended' if over else 'failed'})"


FAULTS: dict[str, tuple[float, Callable[[Run, random.Random], str]]] = {
    "kill": (3, kill_a_rank),
    "worker": (2, kill_a_worker),
    "pause": (2, pause_a_rank),
    "stop": (0.5, stop_a_rank),
    "pause all": (0.5, pause_all),
    "disk full": (2, fill_the_disk),
    "slow disk": (2, slow_the_disk),
    "vanished data": (2, hide_the_data),
    "network cut": (2, cut_the_network),
    "launcher": (2, kill_the_launcher),
    "signal": (2, signal_a_rank),
    "second start": (1, start_a_second),
}
"""name -> (how often, beside the others; what is done)"""
