"""`python -m demo.web`, watched: every address that its process binds or asks for is a line in the file $ADDRESSES.

While a file $HOLD is there, nothing is decoded: a request that draws takes as long as a test wants.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

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
    """Decoding waits while this file is there."""
    decode = Sampler.decode

    def waiting(sampler: Sampler, codes_BHWD: Any) -> Any:
        while path.exists():
            time.sleep(0.05)
        return decode(sampler, codes_BHWD)

    Sampler.decode = waiting


if __name__ == "__main__":
    hold(Path(os.environ["HOLD"]))
    watch(os.environ["ADDRESSES"])
    runpy.run_module("demo.web", run_name="__main__", alter_sys=True)
