"""`python -m demo.web`, watched: every address that its process binds or asks for is a line in the file $ADDRESSES.

While a file $HOLD is there, a request that draws takes as long as a test wants.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rqtransformer.decoding import PartialCodes
from sampling.sampler import Sampler

EVENTS = {"socket.bind": 1, "socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
"""Event -> which of its arguments has the address."""


def watch(path: str) -> None:
    """From now on, whoever does it."""
    file = open(path, "a", buffering=1)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS:
            address = arguments[EVENTS[event]]
            host = address[0] if isinstance(address, tuple) else address
            file.write(f"{event} {host if isinstance(host, str) else ascii(host)}\n")

    sys.addaudithook(heard)


def hold(path: Path) -> None:
    """Drawing stops while this file is there and empty, and takes so many seconds a position where it says a number."""
    stream = Sampler.stream

    def slow(sampler: Sampler, *asked: Any) -> Iterator[PartialCodes]:
        for partial in stream(sampler, *asked):
            while (said := _said(path)) == "":
                time.sleep(0.05)
            time.sleep(float(said or 0))
            yield partial

    Sampler.stream = slow


def _said(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    hold(Path(os.environ["HOLD"]))
    watch(os.environ["ADDRESSES"])
    runpy.run_module("demo.web", run_name="__main__", alter_sys=True)
