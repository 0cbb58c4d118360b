"""Mistakes a user can make: one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EXIT_CODE = 2
LOST_RANK_EXIT_CODE = 1  # of a process that can only say that another one has ended
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of <_io.BytesIO object at 0x7f...>
TRACEBACK_VARIABLE = "RQ_TRACEBACK"


class UserError(ValueError):
    """Something only the user can put right. The message is one line: the value, and what would be valid."""


def one_line(error: BaseException) -> str:
    """The message of an exception on a single line, without addresses of objects; without a message its type's name."""
    # KeyError's str() is the repr of its argument, quotes included.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(_ADDRESS.sub("", text).split()) or type(error).__name__


def first_few(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, for a message of one line; dots stand for the others."""
    return ", ".join([*map(str, names[:most]), *(["..."] if len(names) > most else [])])


@contextmanager
def exit_on_user_error(*also: type[BaseException]) -> Iterator[None]:
    """Turn `UserError`, and the exception types in `also`, into `error: <one line>` on stderr and exit code 2.

    Every rank that fails says so; ranks other than 0 add their number. With the environment variable `RQ_TRACEBACK`
    set, the traceback is printed as well. Ctrl-C ends in a line of its own, said by rank 0; a reader of the output who
    has seen enough (`| head`) in none.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None
    except BaseException as error:
        if not isinstance(error, (UserError, *also)):
            raise
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (rank {rank})"
        print(f"error{where}: {one_line(error)}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more; what is still to be written then goes nowhere."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
