"""Commands of the repository as a user starts them: in processes of their own, under a launcher, or in this process."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import pytest

from tests.repository import ROOT

ANNOUNCED = re.compile(r"\d\d:\d\d:\d\d I (reading|loading|building) ")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone")


class Ended(NamedTuple):
    """A process that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on stderr, without what a training script announces while it has no log yet."""
        return [line for line in self.err.splitlines() if not ANNOUNCED.match(line)]


def start(*words: object, **variables: str) -> subprocess.Popen[str]:
    """`python ...` in the repository, one thread, no GPU; its output is piped. `variables` join the environment."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: object, timeout: float = 120, **variables: str) -> Ended:
    """`python ...` to its end, whatever that is; one that takes longer than `timeout` seconds fails."""
    with start(*words, **variables) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends its workers as well
            raise AssertionError(f"no end after {timeout} s: {''.join(process.communicate())[-4000:]}") from None
    return Ended(process.returncode, out, err)


def succeed(*words: object, timeout: float = 120, **variables: str) -> Ended:
    """`python ...`, which must end with exit code 0."""
    ended = run(*words, timeout=timeout, **variables)
    assert ended.code == 0, ended.out[-2000:] + ended.err[-4000:]
    return ended


def torchrun(*words: object, number: int = 2, timeout: float = 120, **variables: str) -> Ended:
    """A script under torchrun in `number` processes of this machine; it must succeed."""
    return succeed(*LAUNCHER, f"--nproc-per-node={number}", *words, timeout=timeout, **variables)


def environment(**variables: str) -> dict[str, str]:
    """That of this process, with one thread, without a GPU, and with the repository to import from."""
    paths = [variables.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    places = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return os.environ | places | variables


def run_here(name: str, *words: object) -> None:
    """A script (`main_stage1.py`) or a module (`evaluation.networks`) in this process, as `python` would start it.

    What starting it as a process of its own takes, several seconds of imports, is saved; it ends in `SystemExit` where
    that would end with an exit code.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*found in sys.modules.*")  # a module runs as a second copy
        patch.setattr(sys, "argv", [name, *map(str, words)])
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")


def ended_here(capture: Any, name: str, *words: object) -> Ended:
    """`run_here` with its exit code and what it printed, as the fixture `capsys` or `capfd` sees it."""
    capture.readouterr()
    code: Any = 0
    try:
        run_here(name, *words)
    except SystemExit as end:
        code = end.code or 0
    return Ended(code, *capture.readouterr())
