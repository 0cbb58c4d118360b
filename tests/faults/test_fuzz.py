"""Damaged files for every reader; ten thousand each where there is time (`tests.faults.fuzz` alone goes further)."""

from __future__ import annotations

import json
import random

import pytest

from tests.faults import fuzz
from tests.faults.fuzz_mutations import mutated
from tests.faults.fuzz_reader import Reader
from tests.faults.fuzz_readers import READERS

CASES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_damaged_files(name):
    found = fuzz.run(name, 0, CASES)
    assert found["faults"] == []
    assert found["cases"] == CASES


@pytest.mark.parametrize("name", READERS)
def test_some_damaged_files(name, tmp_path):
    """In this process and without limits: quick, and enough to keep the readers of the fuzz running."""
    reader = READERS[name]()
    seeds = reader.seeds(tmp_path)
    for content in seeds:
        reader.read(content, tmp_path)
    for number in range(15):
        outcome, text = fuzz.one_case(reader, seeds, random.Random(f"quick/{name}/{number}"), tmp_path)
        assert outcome in ("read", "refused"), (number, text)


def test_a_case_is_the_same_file_always():
    seeds = [b"sound 123 file" * 20, b"another"]
    files = [[mutated(seeds[0], seeds, random.Random(number), [b"null"]) for number in range(50)] for _ in range(2)]
    assert files[0] == files[1]
    assert len(set(files[0])) > 45


class Broken(Reader):
    """A reader with every kind of fault, by the first byte of a file."""

    def read(self, content, folder):
        kind = content[:1]
        if kind == b"e":
            raise KeyError("no refusal")
        if kind == b"l":
            raise ValueError("two\nlines")
        if kind == b"s":
            while True:
                pass
        if kind == b"r":
            raise ValueError("refused")

    def repaired(self, content, draw):
        return self.content


@pytest.mark.parametrize(
    ("content", "outcome", "text"),
    [
        (b"x", "read", ""),
        (b"r", "refused", "refused"),
        (b"e", "fault", "KeyError: 'no refusal'"),
        (b"l", "fault", "not one line: two\nlines"),
        (b"s", "fault", "it takes too long"),
    ],
)
def test_faults_are_seen(content, outcome, text, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "PROCESSOR_SECONDS", 0.2)
    reader = Broken()
    reader.content = content
    assert fuzz.one_case(reader, [b"seed"], random.Random(0), tmp_path) == (outcome, text)


def test_a_process_that_dies_is_a_fault_and_the_rest_goes_on(monkeypatch, tmp_path):
    calls = []

    class Ended:
        returncode = -11

    def start(words, check):
        start, cases, folder = int(words[6]), int(words[7]), words[8]
        calls.append(start)
        done = {"cases": 3 if start == 0 else cases - start, "outcomes": {"read": 3}, "faults": []}
        with open(f"{folder}/result.json", "w", encoding="utf-8") as file:
            json.dump({**done, "slowest_seconds": 0.1, "peak_mib": 1}, file)
        return Ended

    monkeypatch.setattr("subprocess.run", start)
    found = fuzz.run("tar", 0, 10)
    assert calls == [0, 4]
    assert found["cases"] == 10
    assert found["faults"] == [{"case": 3, "what": "the process ended with -11"}]
