"""The folder that a command makes: it appears with all that belongs into it, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rqstack.snapshots import appearing_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Where to write what `out` shall hold.

    Raises:
        ValueError: something is there already.
    """
    check_free(out)
    with appearing_folder(out) as folder:
        yield folder


def png_beside(place: Path) -> Path:
    """The PNG file for an image of that name; a second image of one stem keeps its whole name."""
    target = place.with_suffix(".png")
    return place.with_name(f"{place.name}.png") if target.exists() else target


def check_free(out: Path) -> None:
    """ValueError where something is in the way; to be asked before anything is computed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder: nothing is overwritten")
