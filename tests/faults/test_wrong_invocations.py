"""A thousand mistakes, drawn over all commands: one short line each, exit code 2, and nothing on disk.

One that fails is named by its number: `WRONG_INVOCATION=17 pytest -m slow tests/faults/test_wrong_invocations.py` runs
it alone; `WRONG_INVOCATIONS_SEED=3` draws others.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import Ended, ended_here
from tests.faults.wrong_invocations import COMMANDS, Invocation, parser_of, wrong_invocations
from tests.training.tiny_runs import stage1, stage2, train, write_config

COUNT, SEED = 1000, 15
LONGEST = 300  # characters of a message, without what the user typed
SECONDS = 60  # after which one counts as running
TEXT = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8}


class Accepted(BaseException):
    """The command would begin its work now."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """What the words in braces stand for."""
    folder = tmp_path_factory.mktemp("wrong")
    files = {name: folder / name for name in ("folder", "images", "empty", "binary", "captions", "urls", "missing")}
    files["folder"].mkdir()
    files["images"].mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(files["images"] / f"{i}.png")
    files["empty"].write_bytes(b"")
    files["binary"].write_bytes(bytes(range(256)) * 4)
    files["captions"].write_text("a red disc\na blue square\n")
    files["urls"].write_text("a disc\thttp://127.0.0.1:9/x.jpg\n")
    for number, config in (("1", stage1()), ("2", stage2())):
        files[f"config{number}"] = write_config(folder / f"tiny{number}.yaml", config)
    files["one"] = train("stage1", "-m", files["config1"], "-r", folder / "runs").run_dir
    of_one = ("-v", files["one"], "-r", folder / "runs")
    files["two"] = train("stage2", "-m", files["config2"], *of_one).run_dir
    text = write_config(folder / "text.yaml", stage2(TEXT))
    files["text"] = train("stage2", "-m", text, *of_one).run_dir
    return {name: str(path) for name, path in files.items()}


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path) -> None:
    """A CPU without any weight file or data set, and commands that stop where their work would begin."""

    def begin(*_: Any, **__: Any) -> None:
        raise Accepted

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RQVAE_VGG16_WEIGHTS", "FID_INCEPTION_WEIGHTS", "RQ_DATA_ROOT", "RQ_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("training.launch.session.Session.train", begin)
    monkeypatch.setattr("training.launch.session.Session.evaluate", begin)
    monkeypatch.setattr("measure_throughput.roofline.measure_roofline", begin)
    monkeypatch.setattr("runtime.rundir.new_run_dir", begin)
    monkeypatch.chdir(tmp_path)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer, and gives the signals back as they were."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = {each: signal.getsignal(each) for each in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for each, handler in before.items():
            signal.signal(each, handler)


def faults_of(invocation: Invocation, places: dict[str, str], folder: Path, capture: Any) -> list[str]:
    """What is not as it should be when it is run."""
    out = folder / "out"
    out.mkdir(parents=True)
    places = places | {"out": str(out)}
    if invocation.changes:
        number, config = ("1", stage1) if invocation.command == "main_stage1.py" else ("2", stage2)
        try:
            changed = config(dict(invocation.changes))
        except AttributeError:  # a key below one that holds no section in the tiny config
            return []
        places[f"config{number}"] = str(write_config(folder / f"tiny{number}.yaml", changed))
    words = list(invocation.words)
    for name, path in places.items():
        words = [word.replace(f"{{{name}}}", path) for word in words]
    name, *action = invocation.command.split(" ")
    try:
        with limited(SECONDS):
            ended = ended_here(capture, name, *action, *words)
    except Accepted:
        return ["accepted"]
    except Exception as error:
        return [f"traceback: {type(error).__name__}: {str(error)[:300]}"]
    found = faults_of_end(ended, [*words, *(str(value) for _, value in invocation.changes)])
    left = [str(path.relative_to(out)) for path in out.rglob("*")]
    return [*found, f"left behind: {left[:4]}"] if left else found


def faults_of_end(ended: Ended, words: list[str]) -> list[str]:
    """What is wrong with an exit code and with what was printed."""
    lines = ended.err.splitlines()
    said = [line for line in lines if line.startswith("error:")]
    found = []
    if ended.code != 2:
        found.append(f"exit code {ended.code}: {ended.err[-300:]}")
    if len(said) != 1:
        found.append(f"{len(said)} error lines: {ended.err[:300]!r}")
    if "Traceback" in ended.err or " at 0x" in ended.err:
        found.append(f"internals: {ended.err[:300]!r}")
    for line in said:
        own = line
        for text in sorted({part for word in words for part in (word, word.partition("=")[2])}, key=len, reverse=True):
            if len(text) >= 12:
                own = own.replace(text, "").replace(repr(text)[1:-1], "")
        if len(own) > LONGEST:
            found.append(f"{len(own)} characters: {line[:400]}")
    return found


@pytest.mark.slow
def test_mistakes_end_in_one_short_line(places, tmp_path, capsys):
    seed = int(os.environ.get("WRONG_INVOCATIONS_SEED", SEED))
    only = os.environ.get("WRONG_INVOCATION")
    invocations = wrong_invocations(COUNT, seed)
    assert len(invocations) == COUNT
    numbers = [int(number) for number in only.split(",")] if only else range(COUNT)
    failed = []
    for number in numbers:
        found = faults_of(invocations[number], places, tmp_path / str(number), capsys)
        failed += [f"{number}: {invocations[number]}\n    {fault}" for fault in found]
    assert not failed, f"seed {seed}, {len(failed)} faults\n" + "\n".join(failed)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_mistakes_over_all_commands():
    drawn = wrong_invocations(COUNT, SEED)
    assert str(drawn) == str(wrong_invocations(COUNT, SEED))  # a nan that was drawn differs from itself
    assert drawn != wrong_invocations(COUNT, SEED + 1)
    assert {each.command for each in drawn} == set(COMMANDS)
    assert "--top-k" in parser_of("main_sampling_fid.py")._option_string_actions
