"""The trial of every kernel, in Triton's interpreter: it lets the kernel pass, and not one that is a little wrong."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.commands import succeed
from tests.repository import ROOT

SCRIPT = Path(__file__).with_name("trials_in_interpreter.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@pytest.mark.slow
@needs_triton
def test_a_trial_tells_a_right_kernel_from_a_wrong_one():
    done = succeed(SCRIPT, timeout=290, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    verdicts = json.loads(done.out.splitlines()[-1])
    assert set(verdicts) == trials_of_the_repository()
    assert set(map(tuple, verdicts.values())) == {(True, False)}, verdicts


def trials_of_the_repository() -> set[str]:
    """Functions that `use_kernel` asks, by name."""
    sources = [
        file.read_text() for package in ("rqstack", "rqvae", "rqtransformer") for file in (ROOT / package).rglob("*.py")
    ]
    return set(re.findall(r"\buse_kernel\((\w+_trial),", "\n".join(sources)))
