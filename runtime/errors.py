"""What is said on a terminal, a line at a time; and mistakes a user can make: one line and exit code 2, no traceback.

No text from elsewhere acts in such a line: see `rqstack.printable`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rqstack.printable import BROKEN_PIPE_EXIT_CODE, printable
from runtime.processes.system import reader_is_gone

EXIT_CODE = 2
LOST_RANK_EXIT_CODE = 1  # of a process that can only say that another one has ended
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of <_io.BytesIO object at 0x7f...>
TRACEBACK_VARIABLE = "RQ_TRACEBACK"


def say(text: object = "", *, to_stderr: bool = False) -> None:
    """Prints one line. Control characters, line ends among them, are shown and do nothing."""
    print(printable(text), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def warn(text: object) -> None:
    """`warning: <text>` on stderr."""
    say(f"warning: {text}", to_stderr=True)


class PrintableFormatter(logging.Formatter):
    """Log lines in which nothing acts: a record is one line, those of a traceback excepted."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable_traceback(ei[1]).rstrip("\n")


def printable_traceback(error: BaseException | None) -> str:
    """The traceback of an error as Python prints it, its message on one line in which nothing acts."""
    text = ""
    for part in traceback.format_exception(error):
        is_message = not part.startswith((" ", "\n"))  # others are places in the code, and what joins two errors
        lines = [part.rstrip("\n")] if is_message else part.rstrip("\n").split("\n")
        text += "".join(f"{printable(line)}\n" for line in lines)
    return text


class UserError(ValueError):
    """Something only the user can put right. The message is one line: the value, and what would be valid."""


def one_line(error: BaseException) -> str:
    """The message of an exception on a single line, without addresses of objects; without a message its type's name.
    Control characters are shown and do nothing.
    """
    # KeyError's str() is the repr of its argument, quotes included.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return printable(" ".join(_ADDRESS.sub("", text).split())) or type(error).__name__


def first_few(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, for a message of one line; dots stand for the others."""
    return ", ".join([*map(printable, names[:most]), *(["..."] if len(names) > most else [])])


@contextmanager
def exit_on_user_error(*also: type[BaseException]) -> Iterator[None]:
    """Turn `UserError`, and the exception types in `also`, into `error: <one line>` on stderr and exit code 2.

    Every rank that fails says so; ranks other than 0 add their number. With the environment variable `RQ_TRACEBACK`
    set, the traceback is printed as well. Ctrl-C ends in a line of its own, said by rank 0; a reader of the output who
    has seen enough (`| head`) in none.
    """
    if logging.lastResort is not None:  # what modules log is printed by it where no handler was set up
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say("interrupted", to_stderr=True)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        raise SystemExit(BROKEN_PIPE_EXIT_CODE) from None
    except BaseException as error:
        if not isinstance(error, (UserError, *also)):
            raise
        if os.environ.get(TRACEBACK_VARIABLE):
            sys.stderr.write(printable_traceback(error))
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (rank {rank})"
        say(f"error{where}: {one_line(error)}", to_stderr=True)
        raise SystemExit(EXIT_CODE) from None


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more; what is still to be written then goes nowhere."""
    if not reader_is_gone(sys.stdout.fileno()):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
