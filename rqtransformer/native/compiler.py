"""The C++ compiler: which one, and a run of it that ends in time whatever it does."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

COMPILERS = ("c++", "g++", "clang++")
_LONGEST_OUTPUT = 1 << 20


def find_compiler() -> str | None:
    """$CXX, or the first C++ compiler on the path."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


class CompilerFailed(OSError):
    """It ended with an error, was too slow, or printed without end: it would do so again."""


def run_until(deadline: float, command: Sequence[str], stderr: int = subprocess.STDOUT) -> bytes:
    """What a command prints.

    It runs in a session of its own, which is ended with all of its processes when the time is over.

    Args:
        deadline: by `time.monotonic()`.
        stderr: where that goes; by default among what is printed.

    Raises:
        CompilerFailed: see there. OSError: it cannot be started.
    """
    begin, output = time.monotonic(), b""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            while block := _next_block(process.stdout.fileno(), deadline):
                output += block
                if len(output) > _LONGEST_OUTPUT:
                    raise CompilerFailed(f"{command[0]} prints without end")
            process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            _end(process)
            raise CompilerFailed(f"{command[0]} took longer than {time.monotonic() - begin:.0f} s") from None
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        last = output.decode(errors="replace").strip().splitlines()[-1:]
        said = f": {last[0]}" if last else ""
        raise CompilerFailed(f"{command[0]} failed with exit code {process.returncode}{said}")
    return output


def _next_block(descriptor: int, deadline: float) -> bytes:
    """What comes next, b"" at the end; TimeoutError after the deadline."""
    ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        raise TimeoutError
    return os.read(descriptor, 1 << 16)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
