"""A run directory belongs to one living run: whoever else wants to write there is told who holds it.

On one host a file lock decides, which the system gives back when its process dies. A disk that several hosts share may
not pass locks on: the owner also says who it is in a file, whose time it renews every few seconds. Another host waits
whether that time moves; no two clocks are compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.atomic import write_text_atomically
from runtime.errors import EXIT_CODE, UserError, one_line, say
from runtime.processes.system import boot_id, is_alive

LOCK_FILE, OWNER_FILE = "run.lock", "owner.json"
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 35.0
"""An owner on another host that has not renewed its time for so long is taken for dead."""
ENDING_SECONDS = 20.0
"""How long an owner on this host that has died, but still gives its memory back, is waited for."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Owner:
    """Who writes to a run directory: `kernel` is the boot id of the host, `token` drawn for this one ownership."""

    host: str
    kernel: str
    pid: int
    since: str
    token: str

    @classmethod
    def here(cls) -> Owner:
        """This process, from now on."""
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), boot_id(), os.getpid(), since, secrets.token_hex(8))

    @property
    def is_on_this_host(self) -> bool:
        """Whether one system answers for the locks of both: containers of a host have names of their own."""
        return (self.kernel or self.host) == (boot_id() or socket.gethostname())

    @property
    def is_alive(self) -> bool:
        """Of an owner on this host: whether there is a process of its number."""
        return is_alive(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class RunOwnership:
    """Holds a run directory from its making until `release`, or until nothing refers to it any more.

    Args:
        run_dir: the directory, which exists.
        lost: called when another host has taken the directory, because this process stood still for too long; the
            default says so and ends the process at once: two runs must not write there.

    Raises:
        UserError: a living run holds it; the message says which.
    """

    def __init__(self, run_dir: Path, lost: Callable[[str], None] | None = None) -> None:
        self.owner, self._file = Owner.here(), run_dir / OWNER_FILE
        # made by this thread, perhaps given back by another
        self._lock = FileLock(run_dir / LOCK_FILE, timeout=0, thread_local=False)
        try:
            self._take(run_dir)
        except OSError as error:
            raise UserError(f"cannot write to {run_dir}: {one_line(error)}") from error
        ended = threading.Event()
        self.release = weakref.finalize(self, _release, self._lock, self._file, self.owner, ended)
        threading.Thread(
            target=_keep_alive, args=(self._file, self.owner, ended, lost or _end), name="heartbeat", daemon=True
        ).start()

    def _take(self, run_dir: Path) -> None:
        deadline = time.monotonic() + ENDING_SECONDS
        while True:
            try:
                self._lock.acquire()
                break
            except Timeout:
                holder = read_owner(self._file)
                dying = holder is not None and holder.is_on_this_host and not holder.is_alive
                if time.monotonic() > deadline or not (dying or holder is None):
                    raise _refusal(run_dir, holder) from None
                time.sleep(_POLL_SECONDS)
        try:
            before = read_owner(self._file)
            if before is not None and not before.is_on_this_host and _moves(self._file, before):
                raise _refusal(run_dir, before)
            write_text_atomically(self._file, json.dumps(asdict(self.owner), indent=1) + "\n")
        except BaseException:
            self._lock.release()
            raise


def read_owner(file: Path) -> Owner | None:
    """What an owner file says; None where there is none, or nothing that one would say."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        owner = Owner(**content)
        return owner if type(owner.pid) is int and owner.pid > 0 else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _refusal(run_dir: Path, holder: Owner | None) -> UserError:
    who = "another process" if holder is None else str(holder)
    return UserError(f"{run_dir} is being written by {who}; wait until it has ended, or stop it")


def _moves(file: Path, owner: Owner) -> bool:
    """Whether an owner on another host still renews the time of its file; takes up to `SILENT_SECONDS`."""
    first = _time_of(file)
    # both times are of the disk's own clock
    probe = file.with_name(f".{OWNER_FILE}.{secrets.token_hex(4)}")
    probe.touch()
    silent = _time_of(probe) - first
    probe.unlink()
    deadline = time.monotonic() + SILENT_SECONDS - max(0.0, silent)
    if time.monotonic() < deadline:
        say(f"the run was last written by {owner}: waiting whether that still lives", to_stderr=True)
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        if _time_of(file) != first or read_owner(file) != owner:
            return read_owner(file) is not None
    return False


def _time_of(file: Path) -> float:
    """The time of a file as its disk has it now: opening it asks a network disk, which a look at its name need not."""
    try:
        with open(file, "rb") as opened:
            return os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _keep_alive(file: Path, owner: Owner, ended: threading.Event, lost: Callable[[str], None]) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        found = read_owner(file)
        if found is not None and found != owner:
            lost(f"{file.parent} was taken over by {found} while this process stood still")
            return
        with suppress(OSError, UserError):  # a full or lost disk ends the run elsewhere, or comes back
            if found is None:
                write_text_atomically(file, json.dumps(asdict(owner), indent=1) + "\n")
            os.utime(file)


def _end(line: str) -> None:
    say(f"error: {line}; this one ends", to_stderr=True)
    os._exit(EXIT_CODE)


def _release(lock: FileLock, file: Path, owner: Owner, ended: threading.Event) -> None:
    if os.getpid() != owner.pid:  # a data worker, whose copy goes
        return
    ended.set()
    with suppress(OSError):
        if read_owner(file) == owner:
            file.unlink()
    with suppress(OSError):
        lock.release()
