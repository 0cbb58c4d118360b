"""What a run of the acceptance is told, and how an item says that it cannot run. Needs nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
        identity: what lines of this machine and code say (`result_lines.IDENTITY`); empty until it is known.
    """

    device: str
    tiny: bool
    fashion_mnist: str | None
    results: str
    identity: Mapping[str, Any] = field(default_factory=dict)
