"""Runs one item in a process of its own, with a time limit. The parent never touches CUDA, nor imports torch.

Processes come from a fork server that has imported everything and nothing else, so that one starts in milliseconds.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Absent, Settings
from runtime.errors import one_line

ROOT = Path(__file__).resolve().parents[2]
LEAVING = 10.0  # seconds that an item has to end by itself once it is through
TAIL = 1500  # characters of a failed item's output that are kept
ITEMS = "benchmarks.gpu.items"  # where the modules of targets lie


@dataclass
class Outcome:
    """What became of an item: its entries, what was wrong, and how long it took.

    `absent` says what it would have needed; such an item neither ran nor failed.
    """

    result: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    absent: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ran to its end and everything was right."""
        return not self.wrong and self.absent is None


class ItemProcesses:
    """Starts items.

    Args:
        modules: what the fork server imports before the first of them.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))

    def run(self, target: str, settings: Settings, limit: float) -> Outcome:
        """Runs "module:function" to its end, its death or its limit in seconds, whichever is first."""
        outcome, begun = Outcome(), time.monotonic()
        receiver, sender = self._context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            process = self._context.Process(target=_work, args=(sender, target, settings, str(output)))
            process.start()
            sender.close()
            assert process.pid is not None, "it was started"
            try:
                ended = _listen(receiver, process.sentinel, begun + limit, outcome)
                if ended:
                    process.join(LEAVING)
            finally:
                _kill_group(process.pid)
                if process.is_alive():
                    process.kill()
                process.join()
            if not ended:
                outcome.wrong.append(_how_it_ended(process.exitcode, time.monotonic() - begun, limit))
            if outcome.wrong and output.exists():
                tail = output.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
                outcome.result |= {"output": tail} if tail else {}
        outcome.seconds = round(time.monotonic() - begun, 1)
        return outcome


def _listen(receiver: Connection, sentinel: int, deadline: float, outcome: Outcome) -> bool:
    """Takes entries until the item says that it is through, dies or runs out of time; whether it was through."""
    while (left := deadline - time.monotonic()) > 0:
        ready = wait([receiver, sentinel], left)
        if receiver in ready:
            try:
                message = receiver.recv()
            except (EOFError, OSError):
                return False
            if message is None:
                return True
            _take(message, outcome)
        elif ready:  # dead, and nothing is left in the pipe
            return False
    return False


def _take(message: tuple[str, Any, str | None], outcome: Outcome) -> None:
    name, value, wrong = message
    if name == "":
        outcome.absent = value
        return
    outcome.result[name] = value
    if wrong is not None:
        outcome.wrong.append(wrong)


def _how_it_ended(code: int | None, seconds: float, limit: float) -> str:
    if seconds >= limit:
        return f"no end after {limit:.0f} s"
    if code is not None and code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code} before it was through"


def _kill_group(pid: int) -> None:
    """The item and all that it started; it leads a group of its own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing of it is left


def _work(sender: Connection, target: str, settings: Settings, output: str) -> None:
    """The item's process."""
    os.setsid()
    os.chdir(ROOT)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable()
    module, _, function = target.partition(":")
    try:
        # a dotted module is one of another package, as tests have them
        name = module if "." in module else f"{ITEMS}.{module}"
        report = importlib.import_module("benchmarks.gpu.report").Report(settings, sender.send)
        getattr(importlib.import_module(name), function)(report)
    except Absent as absence:
        sender.send(("", str(absence), None))
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)[:400]}"
        sender.send(("error", {"error": text, "at": traceback.format_exc().splitlines()[-7:-1]}, text))
    sender.send(None)
