"""Tensors of a file for a module that a config has built: whether they fit, and in what they do not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

SHOWN = 2  # problems of one kind
LONGEST = 280  # characters of a message


def check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str | Path) -> None:
    """Compares names and shapes.

    Args:
        wanted: the module's state dict; its tensors may have no memory (the meta device).
        given: what the file holds.
        source: the file, for the message.

    Raises:
        ValueError: in one line, the first of what is missing (with the nearest name that is left over), unexpected, or
            of another shape.
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    # names are compared letter by letter: only for those that are shown
    guesses = [name + _nearest(name, unexpected) for name in missing[:SHOWN]]
    problems = [*_first("missing", guesses + missing[SHOWN:]), *_first("unexpected", unexpected)]
    wrong = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    shapes = [f"{name} is {list(given[name].shape)}, the config wants {list(wanted[name].shape)}" for name in wrong]
    problems += _first("", shapes)
    if problems:
        message = f"{source} does not fit the config: {'; '.join(problems)}"
        raise ValueError(message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}...")


def _nearest(name: str, others: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(others), n=1)
    return f" (is it {nearest[0]}?)" if nearest else ""


def _first(label: str, items: list[str]) -> list[str]:
    shown = [f"{label} {item}".strip() for item in items[:SHOWN]]
    return shown + ([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else [])
