"""What POSIX systems have and others have not, each with what stands in its place: the one file that asks for it.

|                              | Linux | macOS | Windows: what stands in its place                                   |
|------------------------------|-------|-------|---------------------------------------------------------------------|
| SIGUSR1 asks a run to stop   | yes   | yes   | SIGTERM and Ctrl-C do; Ctrl-Break likewise                          |
| SIGCHLD                      | yes   | yes   | is not raised there                                                 |
| cores a process may use      | yes   | all   | all of the machine                                                  |
| peak of the resident memory  | yes   | yes   | not known                                                           |
| is a process alive           | yes   | yes   | taken for alive                                                     |
| names of a folder flushed    | yes   | yes   | left to the system, which has no such call                          |
| reading at a place           | yes   | yes   | seek and read, by one thread at a time                              |
| boot id of a host            | yes   | no    | no: the host's name is                                              |
| limits of a process          | yes   | no    | none: what needs them is refused                                    |

A function that is missing is looked for, never the name of a system: what a system lacks is what counts.
"""

from __future__ import annotations

import getpass
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK", "SIGINT") if hasattr(signal, name)
)
"""What asks a run to stop, as far as the system has it."""
CHILD_SIGNAL: signal.Signals | None = getattr(signal, "SIGCHLD", None)
"""Raised when a child process has ended; None on systems that do not say so."""
READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAPPED_MEMORY = Path("/proc/self/statm")
_seeking = threading.Lock()


def usable_cores() -> int:
    """Cores that this process may use; all of the machine where the system gives them to every process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that wanted a core over the last minute; None: not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory_bytes(children: bool = False) -> int | None:
    """Most resident memory that this process, or one of its `children` that ended, has held; None: not known."""
    resource = _resource()
    if resource is None:
        return None
    found = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return found.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_this_process(memory_bytes: int, processor_seconds: int) -> bool:
    """From now on the system ends this process where it takes more; False, and nothing is limited, where it cannot.

    Args:
        memory_bytes: beyond what is mapped now.
        processor_seconds: since the process began.
    """
    resource = _resource()
    if resource is None or not _MAPPED_MEMORY.is_file():
        return False
    mapped = int(_MAPPED_MEMORY.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))
    return True


def is_alive(process: int) -> bool:
    """Whether there is a process of this number; True where that cannot be asked."""
    if not has_owners():  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def boot_id() -> str:
    """What tells this start of this host's system from all others; empty on systems that have none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def user_mark() -> str:
    """What tells this user from the others of the machine, in a file name."""
    return str(os.getuid()) if has_owners() else "".join(filter(str.isalnum, getpass.getuser()))


def has_owners() -> bool:
    """Whether files have owners and modes that say who may write them."""
    return hasattr(os, "getuid")


def is_own(found: os.stat_result) -> bool:
    """Whether a file or folder is this user's; True where files have no owners."""
    return not has_owners() or found.st_uid == os.getuid()


def flush_to_disk(path: Path) -> None:
    """Asks the system to put a file, or a directory's list of names, on the disk (fsync)."""
    if has_owners():
        mode = os.O_RDONLY
    elif path.is_dir():
        return
    else:
        mode = os.O_RDWR
    descriptor = os.open(path, mode | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """`size` bytes of an open file from `start` on, fewer at its end."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _seeking:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)


def touch(descriptor: int, path: Path) -> None:
    """Gives an open file the time of now."""
    os.utime(descriptor if os.utime in os.supports_fd else path)


def take_room(descriptor: int, size: int) -> None:
    """Takes room on the disk for an open file; where the system cannot, a full disk is noticed on writing.

    Raises:
        OSError: the disk has less.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def reader_is_gone(descriptor: int) -> bool:
    """Whether nobody reads a pipe any more; after a write to it failed, where the system cannot be asked."""
    if not hasattr(select, "poll"):
        return True
    watch = select.poll()
    watch.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))


def _resource() -> Any:
    """The module of limits and use of resources; None on systems without it."""
    try:
        import resource
    except ImportError:
        return None
    return resource
