"""Codes drawn ahead: on a GPU the next call starts before the last result is used, and every use waits for its own."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from sampling.drawing_ahead import drawn_ahead


class Stream:
    """Notes what it is asked for."""

    def __init__(self, log: list[str], name: str):
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        calls = [entry for entry in self.log if entry.startswith("start")]
        return f"end of {calls[-1].split()[1]}"


class Codes:
    """A result of a call."""

    def __init__(self, log: list[str], number: int):
        self.log, self.number = log, number

    def record_stream(self, stream: Stream) -> None:
        self.log.append(f"codes {self.number} used on {stream.name}")


@pytest.fixture
def log(monkeypatch) -> list[str]:
    log: list[str] = []
    current = [Stream(log, "caller")]
    names = itertools.cycle("AB")

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def calls(log, count):
    def call(number):
        log.append(f"start {number} on {torch.cuda.current_stream(None).name}")
        return Codes(log, number)

    return [lambda number=number: call(number) for number in range(count)]


def test_a_call_starts_before_the_last_result_is_used(log):
    for codes in drawn_ahead(calls(log, 3), torch.device("cuda")):
        log.append(f"use {codes.number}")
    assert log == [
        "A waits for caller",
        "start 0 on A",
        "B waits for caller",
        "start 1 on B",
        "caller waits for end of 0",
        "codes 0 used on caller",
        "use 0",
        "A waits for caller",
        "start 2 on A",
        "caller waits for end of 1",
        "codes 1 used on caller",
        "use 1",
        "caller waits for end of 2",
        "codes 2 used on caller",
        "use 2",
    ]
    assert list(drawn_ahead([], torch.device("cuda"))) == []


def test_a_cpu_draws_when_it_is_asked(log):
    results = drawn_ahead(calls(log, 2), torch.device("cpu"))
    for number in range(2):
        assert len(log) == 2 * number
        log.append(f"use {next(results).number}")
    assert log == ["start 0 on caller", "use 0", "start 1 on caller", "use 1"]
