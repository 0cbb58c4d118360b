"""What a run of the acceptance is told, and how an item says that it cannot run. Needs nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


class Absent(Exception):
    """What an item needs is not on this machine; it is left out, which is no failure."""


@dataclass(frozen=True)
class Settings:
    """Of a whole run.

    Attributes:
        device: cuda or cpu.
        tiny: sizes for a rehearsal.
        fashion_mnist: folder of the data set's files, if there is one.
        results: the file of result lines.
    """

    device: str
    tiny: bool
    fashion_mnist: str | None
    results: str
