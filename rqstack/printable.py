"""Text from elsewhere (names of files, keys, captions, values of configs) on its way to a terminal, a log or a page.

The one function for that: every writer calls it. It imports nothing, so that the runtime may use it too.
"""

from __future__ import annotations

import html
import unicodedata

BROKEN_PIPE_EXIT_CODE = 128 + 13
"""What a program ends with whose output nobody reads any more: as if by SIGPIPE, which Windows does not have."""
_ACTING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # control, format (directions), half characters, ends of lines
_JOINERS = "\u200c\u200d"  # of scripts and emoji; they do nothing else


def printable(text: object) -> str:
    """One line that shows a text and in which nothing acts.

    Control characters (ESC, line ends, tabs, backspaces), those that turn the direction of writing, and what a file
    name has that is no text stand as in Python's source: `\\x1b`, `\\n`, `\\u202e`. Everything else stays.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _ACTING or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def escaped(text: object) -> str:
    """The same inside HTML, between tags and in attributes."""
    return html.escape(printable(text))


def first_line(error: BaseException) -> str:
    """What an error says in its first line, at most 200 characters of it; its kind where it says nothing."""
    lines = str(error).split("\n")
    return next((line.strip()[:200] for line in lines if line.strip()), type(error).__name__)
